// Which TCP sockets listen in the current network namespace, by sock_diag(7): filtered by state in the kernel.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <vector>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

constexpr uint32_t kListen = 1 << 10; // TCP_LISTEN

struct Request {
    nlmsghdr header;
    inet_diag_req_v2 body;
};

// The attribute's data where it is there and long enough, else null.
const void *attribute(const nlmsghdr *message, const inet_diag_msg *diag, unsigned short type, size_t size) {
    int length = message->nlmsg_len - NLMSG_LENGTH(sizeof(*diag));
    auto *entry = reinterpret_cast<const rtattr *>(reinterpret_cast<const char *>(diag) + NLMSG_ALIGN(sizeof(*diag)));

    for (; RTA_OK(entry, length); entry = RTA_NEXT(entry, length)) {
        if (entry->rta_type == type)
            return RTA_PAYLOAD(entry) >= size ? RTA_DATA(entry) : nullptr;
    }
    return nullptr;
}

Napi::Object describe(Napi::Env env, const nlmsghdr *message) {
    auto *diag = static_cast<const inet_diag_msg *>(NLMSG_DATA(message));
    char text[INET6_ADDRSTRLEN] = "";
    uint64_t cookie = diag->id.idiag_cookie[0] | static_cast<uint64_t>(diag->id.idiag_cookie[1]) << 32;

    inet_ntop(diag->idiag_family, diag->id.idiag_src, text, sizeof(text));
    auto result = Napi::Object::New(env);
    result.Set("family", diag->idiag_family == AF_INET6 ? 6 : 4);
    result.Set("address", text);
    result.Set("port", ntohs(diag->id.idiag_sport));
    result.Set("inode", diag->idiag_inode);
    result.Set("uid", diag->idiag_uid);
    result.Set("cookie", Napi::BigInt::New(env, cookie));
    auto *only = static_cast<const uint8_t *>(attribute(message, diag, INET_DIAG_SKV6ONLY, sizeof(uint8_t)));
    result.Set("v6only", only && *only != 0);
    // Older kernels do not tell.
    auto *options =
        static_cast<const inet_diag_sockopt *>(attribute(message, diag, INET_DIAG_SOCKOPT, sizeof(inet_diag_sockopt)));
    if (options)
        result.Set("transparent", options->transparent == 1);
    return result;
}

void collect(Napi::Env env, int socket, uint8_t family, Napi::Array into) {
    Request request = {};
    std::vector<char> buffer(64 << 10);

    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.body.sdiag_family = family;
    request.body.sdiag_protocol = IPPROTO_TCP;
    request.body.idiag_states = kListen;
    if (send(socket, &request, sizeof(request), 0) < 0)
        throw kernel_error(env, errno, "send", "asking which sockets listen");
    for (;;) {
        ssize_t got = recv(socket, buffer.data(), buffer.size(), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            throw kernel_error(env, errno, "recv", "reading which sockets listen");
        auto length = static_cast<uint32_t>(got);
        for (auto *message = reinterpret_cast<nlmsghdr *>(buffer.data()); NLMSG_OK(message, length);
             message = NLMSG_NEXT(message, length)) {
            if (message->nlmsg_type == NLMSG_DONE)
                return;
            if (message->nlmsg_type == NLMSG_ERROR)
                throw kernel_error(env, -static_cast<nlmsgerr *>(NLMSG_DATA(message))->error, "recv",
                                   "reading which sockets listen");
            if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(inet_diag_msg)))
                into.Set(into.Length(), describe(env, message));
        }
    }
}

Napi::Value tcp_listeners(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));

    if (!fd)
        throw kernel_error(env, errno, "socket", "opening a sock_diag socket");
    auto result = Napi::Array::New(env);
    collect(env, fd.get(), AF_INET, result);
    collect(env, fd.get(), AF_INET6, result);
    return result;
}

} // namespace

void define_listeners(Napi::Env env, Napi::Object exports) {
    exports.Set("tcpListeners", Napi::Function::New(env, tcp_listeners));
}

} // namespace ns
