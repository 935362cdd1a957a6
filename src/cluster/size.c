#include "cluster/size.h"

#include <math.h>
#include <string.h>

#define PF_DAY 8.64e19 /* 1e15 FLOP/s for a day */

static const char *const names[HD_SIZE_LAWS] = {"kaplan", "chinchilla", "chinchilla-loss"};

const char *hd_size_law_name(hd_size_law law) { return names[law]; }

int hd_size_law_parse(const char *name, hd_size_law *out)
{
    for (int i = 0; i < HD_SIZE_LAWS; i++)
        if (!strcmp(name, names[i])) return *out = (hd_size_law)i, 0;
    return HD_EINVAL;
}

double hd_size_flops(double parameters, double tokens) { return 6 * parameters * tokens; }

/* Hoffmann et al. 2022, equation 10. */
static const double E = 1.69, A = 406.4, B = 410.7, ALPHA = 0.34, BETA = 0.28;

double hd_size_loss(double parameters, double tokens) { return E + A / pow(parameters, ALPHA) + B / pow(tokens, BETA); }

/* N = scale (C / unit)^power. Approach 3 (equation 4): N = G (C/6)^(b/(a+b)), G = (a A / (b B))^(1/(a+b)). */
typedef struct power_law { double scale, unit, power; } power_law;

static power_law law_of(hd_size_law law)
{
    if (law == HD_SIZE_KAPLAN) return (power_law){1.3e9, PF_DAY, 0.73};
    if (law == HD_SIZE_CHINCHILLA) return (power_law){1, 120, 0.5};
    return (power_law){pow(ALPHA * A / (BETA * B), 1 / (ALPHA + BETA)), 6, BETA / (ALPHA + BETA)};
}

void hd_size_for_flops(hd_size_law law, double flops, hd_size *out)
{
    power_law p = law_of(law);
    double n = p.scale * pow(flops / p.unit, p.power);
    *out = (hd_size){.flops = flops, .parameters = n, .tokens = flops / (6 * n)};
    out->loss = hd_size_loss(n, out->tokens);
}

/* D = C / (6 N) = unit^power C^(1 - power) / (6 scale), solved for C. */
void hd_size_for_tokens(hd_size_law law, double tokens, hd_size *out)
{
    power_law p = law_of(law);
    hd_size_for_flops(law, pow(6 * p.scale * tokens / pow(p.unit, p.power), 1 / (1 - p.power)), out);
}

void hd_size_shape(double parameters, int64_t *layers, int64_t *width)
{
    double deep = fmax(1, rint(cbrt(parameters / (12 * 128 * 128))));
    *layers = (int64_t)deep;
    *width = (int64_t)fmax(1, rint(sqrt(parameters / (12 * deep)) / 128)) * 128;
}

double hd_size_states(double parameters, double gradient, int zero, double ranks)
{
    double optimizer = 12 / (zero >= 1 ? ranks : 1), gradients = gradient / (zero >= 2 ? ranks : 1), weights = 2 / (zero >= 3 ? ranks : 1);
    return parameters * (optimizer + gradients + weights);
}

int hd_size_rent(const hd_cluster *c, hd_size_law law, double utilisation, double flops, double usd, hd_rental *out, hd_error *err)
{
    const hd_device *d = &c->device;
    double peak = d->flops[HD_BF16] > 0 ? d->flops[HD_BF16] : d->flops[HD_F32];
    double nodes = hd_cluster_nodes(c), devices = hd_cluster_devices(c);
    *out = (hd_rental){.rate = utilisation * peak * (d->cores ? nodes : devices), .price = c->price * nodes}; /* a CPU's figures are its node's */
    if (out->price > 0) out->flops_per_usd = out->rate * 3600 / out->price;
    if (!(flops > 0) && !(c->price > 0)) return hd_fail(err, HD_EINVAL, "--budget: %s has no price: give the budget in FLOPs, or a cluster file with a price", c->name);
    if (!(flops > 0)) flops = usd * out->flops_per_usd;
    hd_size_for_flops(law, flops, &out->size);
    out->seconds = flops / out->rate;
    out->usd = out->seconds / 3600 * out->price;
    return 0;
}
