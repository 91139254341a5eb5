// What becomes of a pod while no agent runs: the agent has left a rule for that beside its socket.
#pragma once

#include <string>

#include "configuration.hh"
#include "parameters.hh"

namespace cni {

enum class Absence {
    kHold,  // it is enrolled, or may be: it does not start without the agent
    kWait,  // it is not, as far as anybody knows: the agent is waited for, but not for ever
    kAdmit, // it is not: it starts at once
};

struct Judgement {
    Absence absence = Absence::kHold;
    std::string why;
};

// Whether an agent runs, or is just starting, that has the folder of `socket`.
bool agent_lives(const std::string &socket);

// Whether there is a rule that can be read. Without one every pod is held up.
bool rule_is_left(const Configuration &configuration);

Judgement judge(const Configuration &configuration, const Parameters &parameters);

} // namespace cni
