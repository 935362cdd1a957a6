/* tokenizer_pre.c: what llama.cpp's names of pre-tokenizers ("tokenizer.ggml.pre") stand for. The patterns are those of the models' own tokenizer.json, and the
 * names and what goes with them those of llama.cpp (src/llama-vocab.cpp of build 11434), which writes some patterns in another way that means the same. */
#include "data/tokenizer_int.h"

static const char *const pre_falcon[] = {
    "[\\p{P}\\$\\+<=>\\^~\\|`]+",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    "[0-9][0-9][0-9]",
    NULL,
};
static const char *const pre_default[] = {
    "[\\p{P}\\$\\+<=>\\^~\\|]+",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    "\\p{N}+",
    "[0-9][0-9][0-9]",
    NULL,
};
static const char *const pre_deepseek_llm[] = {
    "[\\r\\n]",
    "\\s?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}"
    "\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{53"
    "1}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1"
    "d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{"
    "1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-"
    "\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}"
    "\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-"
    "\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787"
    "}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{"
    "104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+",
    "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
    "\\s+$",
    "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
    "\\p{N}+",
    NULL,
};
static const char *const pre_deepseek_coder[] = {
    "[\\r\\n]",
    "\\s?\\p{L}+",
    "\\s?\\p{P}+",
    "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
    "\\p{N}",
    NULL,
};
static const char *const pre_deepseek_v3[] = {
    "\\p{N}{1,3}",
    "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_tekken[] = {
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo"
    "}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_gpt4o[] = {
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]"
    "?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]"
    "*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_bloom[] = {
    " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+",
    NULL,
};
static const char *const pre_viking[] = {
    " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+",
    "\\p{N}",
    NULL,
};
static const char *const pre_qwen35[] = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s"
    "+",
    NULL,
};
static const char *const pre_bailing[] = {
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_seed_coder[] = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_minicpm5[] = {
    "\\p{N}{1,3}",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};
static const char *const pre_youtu[] = {
    "[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}\\x{2019}\\x{2014}\\x{ff1a}\\x{ff1b}\\x{ff0c}\\x{300"
    "1}-\\x{303f}\\x{fe30}-\\x{fe4f}]+|[\\x{3105}-\\x{312f}]+|[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]"
    "?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s"
    "*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};

const hd_pre hd_pres[] = {
    {"gpt-2", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"llama-bpe", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"qwen2", HD_PRETOK_QWEN2, false, false, true, false, NULL},
    {"smollm", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"gpt2", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"phi-2", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"mpt", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"olmo", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"jais", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"gigachat", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"a.x-4.0", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"mellum", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"modern-bert", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"trillion", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"granite-docling", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"exaone4", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"jina-es", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"jina-de", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"jina-v2-es", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"jina-v2-de", HD_PRETOK_GPT2, false, false, false, false, NULL},
    {"starcoder", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"refact", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"command-r", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"codeshell", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"exaone", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"minerva-7b", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"mellum2", HD_PRETOK_GPT2, true, false, false, false, NULL},
    {"llama3", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"llama-v3", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"falcon3", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"falcon-h1", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"pixtral", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"midm-2.0", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"lfm2", HD_PRETOK_LLAMA3, false, true, false, true, NULL},
    {"dbrx", HD_PRETOK_LLAMA3, false, false, false, false, NULL},
    {"smaug-bpe", HD_PRETOK_LLAMA3, false, false, false, false, NULL},
    {"chatglm-bpe", HD_PRETOK_LLAMA3, false, false, false, false, NULL},
    {"glm4", HD_PRETOK_LLAMA3, false, true, false, false, NULL},
    {"glm5", HD_PRETOK_LLAMA3, false, true, false, false, NULL},
    {"deepseek-r1-qwen", HD_PRETOK_QWEN2, false, false, true, false, NULL},
    {"megrez", HD_PRETOK_QWEN2, false, false, false, false, NULL},
    {"stablelm2", HD_PRETOK_QWEN2, false, false, false, false, NULL},
    {"hunyuan", HD_PRETOK_QWEN2, false, false, false, false, NULL},
    {"solar-open", HD_PRETOK_QWEN2, false, false, false, false, NULL},
    {"grok-2", HD_PRETOK_QWEN2, false, false, false, false, NULL},
    {"falcon", HD_PRETOK_COUNT, false, false, false, false, pre_falcon},
    {"default", HD_PRETOK_COUNT, false, false, false, false, pre_default},
    {"deepseek-llm", HD_PRETOK_COUNT, false, false, false, false, pre_deepseek_llm},
    {"deepseek-coder", HD_PRETOK_COUNT, false, false, false, false, pre_deepseek_coder},
    {"deepseek-v3", HD_PRETOK_COUNT, false, false, false, false, pre_deepseek_v3},
    {"hunyuan-dense", HD_PRETOK_COUNT, false, false, false, false, pre_deepseek_v3},
    {"joyai-llm", HD_PRETOK_COUNT, false, false, false, false, pre_deepseek_v3},
    {"tekken", HD_PRETOK_COUNT, false, true, false, true, pre_tekken},
    {"gpt-4o", HD_PRETOK_COUNT, false, false, false, false, pre_gpt4o},
    {"llama4", HD_PRETOK_COUNT, false, false, false, false, pre_gpt4o},
    {"kanana2", HD_PRETOK_COUNT, false, false, false, false, pre_gpt4o},
    {"minimax-m2", HD_PRETOK_COUNT, false, false, false, false, pre_gpt4o},
    {"bloom", HD_PRETOK_COUNT, false, false, false, false, pre_bloom},
    {"poro-chat", HD_PRETOK_COUNT, false, false, false, false, pre_bloom},
    {"gpt3-finnish", HD_PRETOK_COUNT, false, false, false, false, pre_bloom},
    {"viking", HD_PRETOK_COUNT, false, false, false, false, pre_viking},
    {"qwen35", HD_PRETOK_COUNT, false, false, true, false, pre_qwen35},
    {"bailingmoe", HD_PRETOK_COUNT, false, false, false, false, pre_bailing},
    {"bailingmoe2", HD_PRETOK_COUNT, false, false, false, false, pre_bailing},
    {"llada-moe", HD_PRETOK_COUNT, false, false, false, false, pre_bailing},
    {"seed-coder", HD_PRETOK_COUNT, false, false, false, false, pre_seed_coder},
    {"minicpm5", HD_PRETOK_COUNT, false, true, false, false, pre_minicpm5},
    {"youtu", HD_PRETOK_COUNT, false, true, false, false, pre_youtu},
    {0},
};
