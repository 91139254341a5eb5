// The calling thread in another network namespace, for as long as this object lives.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sched.h>

#include "common/errors.hh"

namespace ns {

// Comes back also when the body throws. A thread that cannot come back must not run another line of JavaScript.
class Visit {
  public:
    Visit(Napi::Env env, int target) : home_(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
        if (!home_)
            throw kernel_error(env, errno, "open", "remembering the current network namespace");
        if (setns(target, CLONE_NEWNET))
            throw kernel_error(env, errno, "setns", "entering a network namespace");
    }
    ~Visit() {
        if (setns(home_.get(), CLONE_NEWNET)) {
            perror("nodesentry: cannot return to the agent's network namespace");
            abort();
        }
    }
    Visit(const Visit &) = delete;
    Visit &operator=(const Visit &) = delete;

  private:
    Fd home_;
};

} // namespace ns
