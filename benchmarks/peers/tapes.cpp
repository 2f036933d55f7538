// Operator-overloading tapes of C++: the workloads recorded once, and swept again and again.
// Compiled with -DADOLC or -DCPPAD, where the system's headers are.
#include <cmath>
#include <vector>

#ifdef ADOLC
#include <adolc/adolc.h>
using Number = adouble;
#else
#include <cppad/cppad.hpp>
using Number = CppAD::AD<double>;
using CppAD::sin;
static CppAD::ADFun<double> recorded;
#endif

// w1: the scalar loop, p = (x, a, b).
static Number loop(const std::vector<Number> &p, long steps) {
    Number x = p[0], total = 0.0;
    for (long i = 0; i < steps; i++) {
        Number xx = x * x;
        x = sin(p[1] * x) + p[2] * xx / (1.0 + xx);
        total = total + x;
    }
    return total;
}

// w2: the chained Rosenbrock function.
static Number rosenbrock(const std::vector<Number> &x, long) {
    Number total = 0.0;
    for (size_t i = 0; i + 1 < x.size(); i++) {
        Number t = x[i + 1] - x[i] * x[i], u = 1.0 - x[i];
        total = total + 100.0 * t * t + u * u;
    }
    return total;
}

static void record(Number (*f)(const std::vector<Number> &, long), const double *p, long n,
                   long steps) {
    std::vector<Number> x(n);
#ifdef ADOLC
    double value;
    trace_on(1);
    for (long i = 0; i < n; i++) x[i] <<= p[i];
    Number y = f(x, steps);
    y >>= value;
    trace_off();
#else
    for (long i = 0; i < n; i++) x[i] = p[i];
    CppAD::Independent(x);
    std::vector<Number> y(1);
    y[0] = f(x, steps);
    recorded.Dependent(x, y);
    recorded.optimize("no_compare_op");
    recorded.check_for_nan(false);
#endif
}

extern "C" {
void record_loop(const double *p, long steps) { record(loop, p, 3, steps); }

void record_rosenbrock(const double *p, long n) { record(rosenbrock, p, n, 0); }

void sweep(const double *p, long n, double *g) {
#ifdef ADOLC
    gradient(1, n, p, g);
#else
    std::vector<double> x(p, p + n), seed(1, 1.0);
    recorded.Forward(0, x);
    std::vector<double> found = recorded.Reverse(1, seed);
    for (long i = 0; i < n; i++) g[i] = found[i];
#endif
}
}
