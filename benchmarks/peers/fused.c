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
