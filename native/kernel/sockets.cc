// Other processes' sockets: copied, made transparent, described; a socket that connects from another's address, one
// that listens for another process; and whoever is at the other end of a Unix socket.
#include <arpa/inet.h>
#include <fcntl.h>
#include <memory>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "common/errors.hh"
#include "functions.hh"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 // Linux 6.5
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 // Linux 5.14
#endif

namespace ns {

namespace {

Napi::Value pidfd_open(const Napi::CallbackInfo &info) {
    int pid = info[0].As<Napi::Number>().Int32Value();
    long fd = syscall(SYS_pidfd_open, pid, 0);

    if (fd < 0)
        throw kernel_error(info.Env(), errno, "pidfd_open", "opening process " + std::to_string(pid));
    return Napi::Number::New(info.Env(), fd);
}

Napi::Value pidfd_getfd(const Napi::CallbackInfo &info) {
    int target = fd_argument(info, 1);
    long fd = syscall(SYS_pidfd_getfd, fd_argument(info, 0), target, 0);

    if (fd < 0)
        throw kernel_error(info.Env(), errno, "pidfd_getfd",
                           "copying descriptor " + std::to_string(target) + " of another process");
    return Napi::Number::New(info.Env(), fd);
}

int option(Napi::Env env, int fd, int level, int name, const char *doing) {
    int value = 0;
    socklen_t length = sizeof(value);

    if (getsockopt(fd, level, name, &value, &length))
        throw kernel_error(env, errno, "getsockopt", doing);
    return value;
}

void switch_on(Napi::Env env, int fd, int level, int name, const std::string &doing) {
    int on = 1;

    if (setsockopt(fd, level, name, &on, sizeof(on)))
        throw kernel_error(env, errno, "setsockopt", doing);
}

void make_transparent(Napi::Env env, int fd, int family, const std::string &doing) {
    if (family == AF_INET6)
        switch_on(env, fd, IPPROTO_IPV6, IPV6_TRANSPARENT, doing);
    switch_on(env, fd, IPPROTO_IP, IP_TRANSPARENT, doing);
}

void set_transparent(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    int family = option(env, fd, SOL_SOCKET, SO_DOMAIN, "asking for a socket's family");

    make_transparent(env, fd, family, "making a socket transparent");
}

struct FreeAddress {
    void operator()(addrinfo *found) const {
        freeaddrinfo(found);
    }
};

Napi::Value socket_from(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string source = text_argument(info, 0);
    std::string doing = "opening a socket that connects from " + source;
    addrinfo hints = {}, *list = nullptr;
    hints.ai_flags = AI_NUMERICHOST;
    hints.ai_socktype = SOCK_STREAM;

    // It reads a zone too, which a link-local peer's address has; one that is not here it does not know.
    if (getaddrinfo(source.c_str(), nullptr, &hints, &list))
        throw kernel_error(env, EADDRNOTAVAIL, "getaddrinfo", doing);
    std::unique_ptr<addrinfo, FreeAddress> address(list);
    Fd fd(socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd)
        throw kernel_error(env, errno, "socket", doing);
    make_transparent(env, fd.get(), address->ai_family, doing);
    // The port is chosen by connect(), which may share one between destinations; bind() would have to find a free one.
    switch_on(env, fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, doing);
    if (bind(fd.get(), address->ai_addr, address->ai_addrlen))
        throw kernel_error(env, errno, "bind", doing);
    return Napi::Number::New(env, fd.release());
}

// Listens, and is not accepted from: for another process, which expects it to block.
Napi::Value open_listener(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string host = text_argument(info, 0);
    std::string port = std::to_string(info[1].As<Napi::Number>().Int32Value());
    std::string doing = "listening at " + host + " port " + port;
    addrinfo hints = {}, *list = nullptr;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;

    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &list))
        throw kernel_error(env, EADDRNOTAVAIL, "getaddrinfo", doing);
    std::unique_ptr<addrinfo, FreeAddress> address(list);
    Fd fd(socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd)
        throw kernel_error(env, errno, "socket", doing);
    make_transparent(env, fd.get(), address->ai_family, doing);
    switch_on(env, fd.get(), SOL_SOCKET, SO_REUSEADDR, doing);
    int v6only = info[3].As<Napi::Boolean>().Value();
    if (address->ai_family == AF_INET6 && setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only)))
        throw kernel_error(env, errno, "setsockopt", doing);
    if (bind(fd.get(), address->ai_addr, address->ai_addrlen))
        throw kernel_error(env, errno, "bind", doing);
    if (listen(fd.get(), info[2].As<Napi::Number>().Int32Value()))
        throw kernel_error(env, errno, "listen", doing);
    return Napi::Number::New(env, fd.release());
}

Napi::Value socket_info(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    int family = option(env, fd, SOL_SOCKET, SO_DOMAIN, "asking for a socket's family");
    int type = option(env, fd, SOL_SOCKET, SO_TYPE, "asking for a socket's type");

    if (family != AF_INET && family != AF_INET6)
        throw kernel_error(env, EAFNOSUPPORT, "getsockopt", "describing a socket that is not an IP socket");

    sockaddr_storage address = {};
    socklen_t length = sizeof(address);
    uint64_t cookie = 0;
    socklen_t cookie_length = sizeof(cookie);
    if (getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length))
        throw kernel_error(env, errno, "getsockname", "asking for a socket's address");
    if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &cookie_length))
        throw kernel_error(env, errno, "getsockopt", "asking for a socket's cookie");

    char text[INET6_ADDRSTRLEN] = "";
    auto *v4 = reinterpret_cast<sockaddr_in *>(&address);
    auto *v6 = reinterpret_cast<sockaddr_in6 *>(&address);
    bool is_v6 = family == AF_INET6;
    if (is_v6)
        inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof(text));
    else
        inet_ntop(AF_INET, &v4->sin_addr, text, sizeof(text));

    auto result = Napi::Object::New(env);
    result.Set("family", is_v6 ? 6 : 4);
    result.Set("type", type == SOCK_STREAM ? "stream" : type == SOCK_DGRAM ? "dgram" : "other");
    result.Set("listening", option(env, fd, SOL_SOCKET, SO_ACCEPTCONN, "asking whether a socket listens") != 0);
    result.Set("transparent",
               option(env, fd, is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, is_v6 ? IPV6_TRANSPARENT : IP_TRANSPARENT,
                      "asking whether a socket is transparent") != 0);
    result.Set("v6only", is_v6 && option(env, fd, IPPROTO_IPV6, IPV6_V6ONLY, "asking for IPV6_V6ONLY") != 0);
    result.Set("address", text);
    result.Set("port", ntohs(is_v6 ? v6->sin6_port : v4->sin_port));
    result.Set("cookie", Napi::BigInt::New(env, cookie));
    return result;
}

Napi::Value socket_option(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto value = info[3].As<Napi::Uint8Array>();
    socklen_t length = value.ByteLength();

    if (getsockopt(fd_argument(info, 0), info[1].As<Napi::Number>().Int32Value(),
                   info[2].As<Napi::Number>().Int32Value(), value.Data(), &length))
        throw kernel_error(env, errno, "getsockopt", "asking for a socket's option");
    return Napi::Number::New(env, length);
}

// Of the namespace that this thread is in; 0 where the kernel does not tell.
Napi::Value netns_cookie(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    uint64_t cookie = 0;
    socklen_t length = sizeof(cookie);
    Fd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));

    if (!fd)
        throw kernel_error(env, errno, "socket", "asking for the cookie of the network namespace");
    if (getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length))
        cookie = 0;
    return Napi::BigInt::New(env, cookie);
}

Napi::Value peer_credentials(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    ucred credentials = {};
    socklen_t length = sizeof(credentials);

    // Of any other socket the kernel makes them up.
    if (option(env, fd, SOL_SOCKET, SO_DOMAIN, "asking for a socket's family") != AF_UNIX)
        throw kernel_error(env, EAFNOSUPPORT, "getsockopt",
                           "asking for the peer of a socket that is not a Unix socket");
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length))
        throw kernel_error(env, errno, "getsockopt", "asking for a peer's credentials");
    auto result = Napi::Object::New(env);
    result.Set("pid", credentials.pid);
    result.Set("uid", credentials.uid);
    result.Set("gid", credentials.gid);

    int pidfd = -1;
    length = sizeof(pidfd);
    // ENOPROTOOPT: an older kernel; ESRCH or ENODATA: the peer has gone. The credentials stand without it.
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0)
        result.Set("pidfd", pidfd);
    return result;
}

} // namespace

void define_sockets(Napi::Env env, Napi::Object exports) {
    exports.Set("pidfdOpen", Napi::Function::New(env, pidfd_open));
    exports.Set("pidfdGetfd", Napi::Function::New(env, pidfd_getfd));
    exports.Set("setTransparent", Napi::Function::New(env, set_transparent));
    exports.Set("socketFrom", Napi::Function::New(env, socket_from));
    exports.Set("openListener", Napi::Function::New(env, open_listener));
    exports.Set("socketOption", Napi::Function::New(env, socket_option));
    exports.Set("netnsCookie", Napi::Function::New(env, netns_cookie));
    exports.Set("socketInfo", Napi::Function::New(env, socket_info));
    exports.Set("peerCredentials", Napi::Function::New(env, peer_credentials));
}

} // namespace ns
