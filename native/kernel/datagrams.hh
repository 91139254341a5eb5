// Addresses of datagrams.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string>
#include <sys/socket.h>

#include "common/errors.hh"

namespace ns {

constexpr size_t kMostDatagramBytes = 65'536;

union SocketAddress {
    sockaddr any;
    sockaddr_in v4;
    sockaddr_in6 v6;
};

inline SocketAddress parsed(Napi::Env env, const std::string &host, uint16_t port, const std::string &doing) {
    SocketAddress address = {};

    if (inet_pton(AF_INET, host.c_str(), &address.v4.sin_addr) == 1) {
        address.v4.sin_family = AF_INET;
        address.v4.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, host.c_str(), &address.v6.sin6_addr) == 1) {
        address.v6.sin6_family = AF_INET6;
        address.v6.sin6_port = htons(port);
    } else {
        throw kernel_error(env, EADDRNOTAVAIL, "inet_pton", doing);
    }
    return address;
}

inline socklen_t size_of(const SocketAddress &address) {
    return address.any.sa_family == AF_INET6 ? sizeof(address.v6) : sizeof(address.v4);
}

inline void set(Napi::Env env, int fd, int level, int name, int value, const std::string &doing) {
    if (setsockopt(fd, level, name, &value, sizeof(value)))
        throw kernel_error(env, errno, "setsockopt", doing);
}

} // namespace ns
