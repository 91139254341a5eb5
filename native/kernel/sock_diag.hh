// TCP and UDP sockets by sock_diag(7).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>

#include "common/errors.hh"
#include "common/netlink.hh"

namespace ns {

constexpr uint32_t kListen = 1 << TCP_LISTEN;
constexpr uint32_t kUnconnected = 1 << TCP_CLOSE; // of UDP

struct DiagRequest {
    nlmsghdr header;
    inet_diag_req_v2 body;
};

// Every socket of a family in one of these states.
inline DiagRequest diag_request(uint8_t family, uint32_t states, uint8_t protocol = IPPROTO_TCP) {
    DiagRequest request = {};

    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.body.sdiag_family = family;
    request.body.sdiag_protocol = protocol;
    request.body.idiag_states = states;
    return request;
}

// It stays in the network namespace in which it was opened.
inline Fd open_diag(Napi::Env env) {
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));

    if (!fd)
        throw kernel_error(env, errno, "socket", "opening a sock_diag socket");
    return fd;
}

inline const inet_diag_msg *diag_of(const nlmsghdr *message) {
    bool is_whole = message->nlmsg_len >= NLMSG_LENGTH(sizeof(inet_diag_msg));
    return is_whole ? static_cast<const inet_diag_msg *>(NLMSG_DATA(message)) : nullptr;
}

inline uint64_t cookie_of(const inet_diag_msg *diag) {
    return diag->id.idiag_cookie[0] | static_cast<uint64_t>(diag->id.idiag_cookie[1]) << 32;
}

// The attribute's data where it is there and long enough, else null.
inline const void *attribute(const nlmsghdr *message, const inet_diag_msg *diag, unsigned short type, size_t size) {
    int length = message->nlmsg_len - NLMSG_LENGTH(sizeof(*diag));
    auto *entry = reinterpret_cast<const rtattr *>(reinterpret_cast<const char *>(diag) + NLMSG_ALIGN(sizeof(*diag)));

    for (; RTA_OK(entry, length); entry = RTA_NEXT(entry, length)) {
        if (entry->rta_type == type)
            return RTA_PAYLOAD(entry) >= size ? RTA_DATA(entry) : nullptr;
    }
    return nullptr;
}

// Calls `each` for every socket in one of these states.
template <typename Each>
void dump(Napi::Env env, uint8_t family, uint32_t states, const char *doing, Each each,
          uint8_t protocol = IPPROTO_TCP) {
    Fd fd = open_diag(env);
    DiagRequest request = diag_request(family, states, protocol);
    int error = ask(env, fd.get(), request.header, doing, [&](const nlmsghdr *message) {
        if (auto *diag = diag_of(message))
            each(message, diag);
    });
    if (error)
        throw kernel_error(env, error, "recv", doing);
}

using Address = std::array<uint8_t, 16>; // IPv4 in its mapped form, as an IPv6 socket has it

inline Address address_of(const inet_diag_msg *diag, const __be32 *from) {
    Address address = {};

    if (diag->idiag_family == AF_INET6) {
        memcpy(address.data(), from, address.size());
    } else {
        address[10] = address[11] = 0xff;
        memcpy(&address[12], from, 4);
    }
    return address;
}

} // namespace ns
