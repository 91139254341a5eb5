// The answers to a netlink request (netlink(7)).
#pragma once

#include <cerrno>
#include <cstdint>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <napi.h>

#include "common/errors.hh"

namespace ns {

inline int error_of(const nlmsghdr *message) {
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof(nlmsgerr)))
        return EPROTO;
    return -static_cast<const nlmsgerr *>(NLMSG_DATA(message))->error;
}

// Calls `each` for every message that comes, until it returns false. Whether a message answers the request or is left
// over from one that was given up, its sequence number tells. Returns the errno of recv; 0: well. For any thread.
template <typename Each> int try_receive(int fd, Each each) {
    alignas(nlmsghdr) char buffer[32 << 10];

    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        auto length = static_cast<uint32_t>(got);
        for (auto *message = reinterpret_cast<nlmsghdr *>(buffer); NLMSG_OK(message, length);
             message = NLMSG_NEXT(message, length)) {
            if (!each(message))
                return 0;
        }
    }
}

template <typename Each> void receive(Napi::Env env, int fd, const char *doing, Each each) {
    if (int error = try_receive(fd, each))
        throw kernel_error(env, error, "recv", doing);
}

// What comes for a request that has been sent. Returns the errno that it ended with; 0: well. For any thread.
template <typename Each> int try_answer(int fd, const nlmsghdr &request, Each each) {
    int error = 0;

    int failed = try_receive(fd, [&](const nlmsghdr *message) {
        if (message->nlmsg_seq != request.nlmsg_seq)
            return true;
        if (message->nlmsg_type == NLMSG_DONE)
            return false;
        if (message->nlmsg_type == NLMSG_ERROR) {
            error = error_of(message);
            return false;
        }
        each(message);
        return true;
    });
    return failed ? failed : error;
}

// Sends a request and calls `each` for every message of its answer. Returns the errno that it ended with; 0: well.
template <typename Each> int ask(Napi::Env env, int fd, const nlmsghdr &request, const char *doing, Each each) {
    if (send(fd, &request, request.nlmsg_len, 0) < 0)
        throw kernel_error(env, errno, "send", doing);
    return try_answer(fd, request, each);
}

} // namespace ns
