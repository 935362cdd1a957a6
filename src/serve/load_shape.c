/* load_shape.c: lengths, arrivals and words of the load generator. */
#include <math.h>
#include "serve/load.h"

static double uniform(hd_rng *g) { return 1 - hd_rng_uniform(g); } /* (0, 1] */

/* Gamma of shape k, scale 1 (Marsaglia and Tsang 2000); below 1 by their boost. */
static double gamma_draw(hd_rng *g, double k)
{
    if (k < 1) return gamma_draw(g, k + 1) * pow(uniform(g), 1 / k);
    double d = k - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = hd_rng_normal(g), v = pow(1 + c * x, 3);
        if (v > 0 && log(uniform(g)) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
    }
}

double hd_load_gap(hd_rng *g, double rate, double cv)
{
    if (cv == 1) return -log(uniform(g)) / rate;
    if (!(cv > 0)) return 1 / rate;
    double k = 1 / (cv * cv);
    return gamma_draw(g, k) / (k * rate);
}

static double cut(double x, int64_t most)
{
    x = rint(x);
    return x < 1 ? 1 : x > (double)most ? (double)most : x;
}

double hd_load_mu(const hd_load_lengths *l)
{
    enum { DRAWS = 4096 };
    double lo = log(l->mean) - 4 * l->sigma - 2, hi = log(l->mean) + 4 * l->sigma + 2;
    if (!(l->sigma > 0)) return log(l->mean);
    for (int step = 0; step < 50; step++) {
        double mu = (lo + hi) / 2, sum = 0;
        hd_rng g = hd_rng_new(1);
        for (int i = 0; i < DRAWS; i++) sum += cut(exp(mu + l->sigma * hd_rng_normal(&g)), l->most);
        *(sum / DRAWS < l->mean ? &lo : &hi) = mu;
    }
    return (lo + hi) / 2;
}

int64_t hd_load_length(const hd_load_lengths *l, double mu, hd_rng *g)
{
    return (int64_t)cut(l->sigma > 0 ? exp(mu + l->sigma * hd_rng_normal(g)) : l->mean, l->most);
}

void hd_load_words(hd_str *o, int64_t n, hd_rng *g)
{
    /* With a space before each, one token in every usual vocabulary. */
    static const char *const words[] = {
        "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he", "his", "but", "at", "are", "this",
            "have", "from",
        "or", "had", "an", "they", "which", "one", "you", "were", "all", "her", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who",
            "will", "no",
        "more", "if", "out", "so", "up", "said", "what", "its", "about", "than", "into", "them", "can", "only", "other", "time", "new", "some", "could",
            "these", "two", "may",
        "first", "then", "do", "any", "like", "my", "now", "over", "such", "our", "man", "me", "even", "most", "made", "after", "also", "well", "did", "many",
            "before", "must",
        "years", "back", "through", "much", "where", "your", "way", "down", "should", "because", "long", "each", "just", "state", "those", "people", "how",
            "too", "little",
        "good", "world", "make", "very", "year", "still", "see", "own", "work", "men", "day", "get", "here", "old", "life", "both", "between", "being", "under",
    };
    for (int64_t i = 0; i < n; i++) {
        hd_str_putc(o, ' ');
        hd_str_puts(o, words[hd_rng_below(g, sizeof words / sizeof words[0])]);
    }
}
