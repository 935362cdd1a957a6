#include "base/term.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/str.h"

double hd_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- memory ---- */

/* The number behind `key` at the start of a line of a file like /proc/meminfo; `missing` when there is none. */
static uint64_t read_field(const char *path, const char *key, uint64_t missing)
{
    FILE *f = fopen(path, "re");
    char line[256];
    size_t n = strlen(key);
    if (!f) return missing;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, key, n)) continue;
        char *end;
        unsigned long long v = strtoull(line + n, &end, 10);
        if (end == line + n) continue; /* "max" */
        missing = v;
        break;
    }
    fclose(f);
    return missing;
}

uint64_t hd_memory_peak(void) { return read_field("/proc/self/status", "VmHWM:", 0) * 1024; }
uint64_t hd_memory_resident(void) { return read_field("/proc/self/status", "VmRSS:", 0) * 1024; }

/* What one control group leaves: its limit less what is used, cached file pages not counted as used. */
static uint64_t group_available(const char *dir, bool v2)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    uint64_t limit = read_field(path, "", UINT64_MAX);
    if (limit == UINT64_MAX || limit >= (uint64_t)1 << 62) return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s", dir, v2 ? "memory.current" : "memory.usage_in_bytes");
    uint64_t used = read_field(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    uint64_t cached = read_field(path, v2 ? "inactive_file " : "total_inactive_file ", 0);
    used = used > cached ? used - cached : 0;
    return limit > used ? limit - used : 0;
}

/* The least that the groups of this process leave, from its own up to the root. */
static uint64_t groups_available(void)
{
    uint64_t least = UINT64_MAX;
    char line[4096], dir[4200];
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        bool v2 = !strncmp(line, "0::", 3);
        char *path = v2 ? line + 3 : strstr(line, ":memory:");
        if (!path) continue;
        if (!v2) path += strlen(":memory:");
        for (;;) {
            snprintf(dir, sizeof dir, "%s%s", v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", path);
            uint64_t n = group_available(dir, v2);
            if (n < least) least = n;
            char *slash = strrchr(path, '/');
            if (!slash) break;
            *slash = 0;
        }
    }
    if (f) fclose(f);
    return least;
}

uint64_t hd_memory_available(void)
{
    uint64_t machine = read_field("/proc/meminfo", "MemAvailable:", 0) * 1024;
    uint64_t groups = groups_available();
    return groups < machine ? groups : machine;
}

/* ---- lines and bars ---- */

#define CLEAR_LINE "\r\033[K"

void hd_log(const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fprintf(stderr, "%sheddle: %s\n", isatty(STDERR_FILENO) ? CLEAR_LINE : "", text);
}

void hd_progress_begin(hd_progress *p, const char *label, double total, bool quiet)
{
    double now = hd_time();
    *p = (hd_progress){ .label = label, .total = total, .start = now, .last_draw = now, .terminal = isatty(STDERR_FILENO), .quiet = quiet };
    if (p->terminal) p->last_draw = 0; /* the first update draws at once */
}

static int terminal_width(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col >= 20 ? w.ws_col : 80;
}

/* "[=====>    ]" of `width` cells. */
static void add_bar(hd_str *s, double fraction, int width)
{
    int full = (int)(fraction * width);
    hd_str_putc(s, '[');
    for (int i = 0; i < width; i++) hd_str_putc(s, i < full ? '=' : i == full ? '>' : ' ');
    hd_str_puts(s, "] ");
}

static void draw(const hd_progress *p, double done, const char *detail)
{
    char left[24];
    hd_str s;
    hd_str_init(&s);
    double fraction = p->total > 0 ? fmin(fmax(done / p->total, 0), 1) : 0;
    hd_str_printf(&s, "%s ", p->label);
    if (p->total > 0 && p->terminal) add_bar(&s, fraction, 24);
    if (p->total > 0) hd_str_printf(&s, "%3.0f %%", 100 * fraction);
    if (detail && *detail) hd_str_printf(&s, "  %s", detail);
    double elapsed = hd_time() - p->start;
    if (done > p->first && done < p->total)
        hd_str_printf(&s, "  %s left", hd_format_seconds(left, elapsed / (done - p->first) * (p->total - done)));
    if (s.failed) s.len = 0;
    if (p->terminal) {
        int width = terminal_width() - 1;
        fprintf(stderr, CLEAR_LINE "%.*s", s.len > (size_t)width ? width : (int)s.len, s.data);
    } else {
        fprintf(stderr, "heddle: %s\n", s.data);
    }
    fflush(stderr);
    hd_str_free(&s);
}

void hd_progress_update(hd_progress *p, double done, const char *detail)
{
    double now = hd_time();
    if (p->quiet || now - p->last_draw < (p->terminal ? 0.1 : 5.0)) return;
    p->last_draw = now;
    draw(p, done, detail);
}

void hd_progress_hide(hd_progress *p)
{
    if (p->terminal && !p->quiet) fputs(CLEAR_LINE, stderr);
    p->last_draw = 0;
}

void hd_progress_end(hd_progress *p, const char *detail)
{
    char took[24];
    if (p->quiet) return;
    hd_format_seconds(took, hd_time() - p->start);
    fprintf(stderr, "%s%s%s: %s%s%s\n", p->terminal ? CLEAR_LINE : "", p->terminal ? "" : "heddle: ", p->label,
            detail && *detail ? detail : "done", " in ", took);
    fflush(stderr);
}
