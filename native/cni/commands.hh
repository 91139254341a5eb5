// The commands of CNI, each for parameters and a configuration that were checked.
#pragma once

#include "configuration.hh"
#include "parameters.hh"

namespace cni {

struct Call {
    const Parameters &parameters;
    const Configuration &configuration;
    long started_ms; // now_ms() when the plugin was started
};

// Each prints its result, if it has one, and returns, or throws Error. `del` never throws.
void add(const Call &call);
void check(const Call &call);
void del(const Call &call);
void status(const Call &call);
void gc(const Call &call);

} // namespace cni
