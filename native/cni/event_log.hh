// One JSON line per event, in the form of the agent's own log.
#pragma once

#include <string>

#include "parameters.hh"

namespace cni {

enum class Level { kInfo, kWarn, kError };

// To `log_file`; where there is none, or it cannot be written, to stderr. A runtime shows stderr only on failure, so
// events of level info go to a file or nowhere.
void log_event(const std::string &log_file, Level level, const Parameters &parameters, const std::string &message);

} // namespace cni
