/* Hand-written values and adjoints of the workloads: the floor that every system is held against. */
#include <math.h>
#include <stdlib.h>

/* w1: the scalar loop. p = (x, a, b); the adjoint sweep keeps the visited x and nothing else. */
double loop_value(const double *p, long steps) {
    double x = p[0], total = 0;
    for (long i = 0; i < steps; i++) {
        double xx = x * x;
        x = sin(p[1] * x) + p[2] * xx / (1 + xx);
        total += x;
    }
    return total;
}

void loop_gradient(const double *p, long steps, double *g) {
    double x = p[0], *visited = malloc(steps * sizeof *visited);
    for (long i = 0; i < steps; i++) {
        visited[i] = x;
        double xx = x * x;
        x = sin(p[1] * x) + p[2] * xx / (1 + xx);
    }
    double gx = 0, ga = 0, gb = 0;
    for (long i = steps; i--;) {
        gx += 1;
        x = visited[i];
        double xx = x * x, d = 1 / (1 + xx), c = cos(p[1] * x) * gx;
        ga += c * x;
        gb += gx * xx * d;
        gx = c * p[1] + gx * p[2] * 2 * x * d * d;
    }
    g[0] = gx;
    g[1] = ga;
    g[2] = gb;
    free(visited);
}

/* w2: the chained Rosenbrock function. */
double rosenbrock_value(const double *x, long n) {
    double total = 0;
    for (long i = 0; i + 1 < n; i++) {
        double t = x[i + 1] - x[i] * x[i], u = 1 - x[i];
        total += 100 * t * t + u * u;
    }
    return total;
}

void rosenbrock_gradient(const double *x, long n, double *g) {
    for (long i = 0; i < n; i++) g[i] = 0;
    for (long i = 0; i + 1 < n; i++) {
        double t = x[i + 1] - x[i] * x[i];
        g[i + 1] += 200 * t;
        g[i] += -400 * t * x[i] - 2 * (1 - x[i]);
    }
}
