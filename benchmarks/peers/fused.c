/* w3: values and gradients of array workloads, fused by hand into one loop: the floor of w3.
   Built with -ffast-math and OpenMP, so that the loops are vectorised, functions included. */
#include <math.h>

static const double ROOT_HALF = 0.70710678118654752440, DENSITY = 0.39894228040143267794;

void rosenbrock(const double *x, double *g, long n) {
    g[0] = -400 * (x[1] - x[0] * x[0]) * x[0] - 2 * (1 - x[0]);
    g[n - 1] = 200 * (x[n - 1] - x[n - 2] * x[n - 2]);
#pragma omp parallel for simd schedule(static)
    for (long i = 1; i < n - 1; i++)
        g[i] = 200 * (x[i] - x[i - 1] * x[i - 1]) - 400 * (x[i + 1] - x[i] * x[i]) * x[i] -
               2 * (1 - x[i]);
}

/* The least that a gradient of n numbers costs: reading them once and writing as many. */
void rosenbrock_bandwidth(const double *x, double *g, long n) {
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++) g[i] = x[i] + 1;
}

void black_scholes(const double *spot, const double *strike, const double *time,
                   const double *rate, const double *volatility, double *to_spot,
                   double *to_strike, double *to_time, double *to_rate, double *to_volatility,
                   long n) {
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++) {
        double root = sqrt(time[i]), vs = volatility[i] * root;
        double half = 0.5 * volatility[i] * volatility[i];
        double d1 = (log(spot[i] / strike[i]) + (rate[i] + half) * time[i]) / vs, d2 = d1 - vs;
        double n1 = 0.5 * (1 + erf(d1 * ROOT_HALF)), n2 = 0.5 * (1 + erf(d2 * ROOT_HALF));
        double discount = exp(-rate[i] * time[i]), density = DENSITY * exp(-0.5 * d1 * d1);
        double paid = strike[i] * discount * n2;
        to_spot[i] = n1;
        to_strike[i] = -discount * n2;
        to_time[i] = spot[i] * density * volatility[i] / (2 * root) + rate[i] * paid;
        to_rate[i] = time[i] * paid;
        to_volatility[i] = spot[i] * density * root;
    }
}

/* w5: values and gradients of a small function of four numbers, for many samples. Eight steps of
   x += mu + a exp(-b x²) z and a softplus; a block of samples stays in the cache. */
enum { BLOCK = 256, STEPS = 8 };

void local_volatility(const double *x0, const double *a, const double *b, const double *mu,
                      const double *z, double *value, double *to_x, double *to_a, double *to_b,
                      double *to_mu, long n) {
#pragma omp parallel for schedule(static)
    for (long start = 0; start < n; start += BLOCK) {
        long m = n - start < BLOCK ? n - start : BLOCK;
        const double *A = a + start, *B = b + start, *M = mu + start;
        double x[STEPS + 1][BLOCK], s[STEPS][BLOCK], gx[BLOCK], ga[BLOCK], gb[BLOCK], gm[BLOCK];
        for (long j = 0; j < m; j++) x[0][j] = x0[start + j];
        for (int k = 0; k < STEPS; k++)
            for (long j = 0; j < m; j++) {
                double y = x[k][j], sigma = A[j] * exp(-B[j] * y * y);
                s[k][j] = sigma;
                x[k + 1][j] = y + M[j] + sigma * z[k];
            }
        for (long j = 0; j < m; j++) {
            double e = exp(x[STEPS][j]);
            value[start + j] = log(1 + e);
            gx[j] = e / (1 + e);
            ga[j] = gb[j] = gm[j] = 0;
        }
        for (int k = STEPS - 1; k >= 0; k--)
            for (long j = 0; j < m; j++) {
                double y = x[k][j], gs = gx[j] * z[k] * s[k][j];
                gm[j] += gx[j];
                ga[j] += gs;
                gb[j] -= gs * y * y;
                gx[j] -= 2 * gs * B[j] * y;
            }
        for (long j = 0; j < m; j++) {
            to_x[start + j] = gx[j];
            to_a[start + j] = ga[j] / A[j];
            to_b[start + j] = gb[j];
            to_mu[start + j] = gm[j];
        }
    }
}
