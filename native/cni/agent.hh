// One question to the agent over its Unix socket, and its answer.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "deadline.hh"

namespace cni {

struct Answer {
    bool ok = false;
    std::string state; // where ok
    int code = 0;      // where not ok; 0: the agent gave none that can be used
    std::string message;
    std::string details;
    bool retry = false;
};

struct Reply {
    std::optional<Answer> answer;
    std::string failure; // why there is no answer
    bool nobody = false; // nobody listens at the socket
};

// Gives the request for the time that is left.
using Request = std::function<std::string(int left_ms)>;

Reply ask_once(const std::string &socket, const Request &request, const Deadline &deadline);

// Again, after a short pause that grows, while the agent cannot be reached or answers "retry". Of the last attempt.
// Where nobody listens `is_vain` is asked whether to go on.
Reply ask_until(const std::string &socket, const Request &request, const Deadline &deadline,
                const std::function<bool()> &is_vain);

} // namespace cni
