// Listening TCP sockets of the current network namespace, and unconnected ones of UDP, by sock_diag(7): filtered by
// state in the kernel.
#include <arpa/inet.h>

#include "functions.hh"
#include "sock_diag.hh"

namespace ns {

namespace {

Napi::Object describe(Napi::Env env, const nlmsghdr *message) {
    auto *diag = static_cast<const inet_diag_msg *>(NLMSG_DATA(message));
    char text[INET6_ADDRSTRLEN] = "";

    inet_ntop(diag->idiag_family, diag->id.idiag_src, text, sizeof(text));
    auto result = Napi::Object::New(env);
    result.Set("family", diag->idiag_family == AF_INET6 ? 6 : 4);
    result.Set("address", text);
    result.Set("port", ntohs(diag->id.idiag_sport));
    result.Set("inode", diag->idiag_inode);
    result.Set("uid", diag->idiag_uid);
    result.Set("cookie", Napi::BigInt::New(env, cookie_of(diag)));
    auto *only = static_cast<const uint8_t *>(attribute(message, diag, INET_DIAG_SKV6ONLY, sizeof(uint8_t)));
    result.Set("v6only", only && *only != 0);
    // Version 2's, as of when the socket was opened. A kernel without them does not tell.
    auto *cgroup = static_cast<const uint64_t *>(attribute(message, diag, INET_DIAG_CGROUP_ID, sizeof(uint64_t)));
    if (cgroup) {
        uint64_t number;
        memcpy(&number, cgroup, sizeof(number));
        result.Set("cgroup", static_cast<double>(number));
    }
    // Older kernels do not tell.
    auto *options =
        static_cast<const inet_diag_sockopt *>(attribute(message, diag, INET_DIAG_SOCKOPT, sizeof(inet_diag_sockopt)));
    if (options)
        result.Set("transparent", options->transparent == 1);
    return result;
}

Napi::Value tcp_listeners(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto result = Napi::Array::New(env);

    for (uint8_t family : {AF_INET, AF_INET6}) {
        dump(env, family, kListen, "asking which sockets listen", [&](const nlmsghdr *message, const inet_diag_msg *) {
            result.Set(result.Length(), describe(env, message));
        });
    }
    return result;
}

Napi::Value udp_listeners(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto result = Napi::Array::New(env);
    auto take = [&](const nlmsghdr *message, const inet_diag_msg *) {
        result.Set(result.Length(), describe(env, message));
    };

    for (uint8_t family : {AF_INET, AF_INET6})
        dump(env, family, kUnconnected, "asking which sockets take datagrams", take, IPPROTO_UDP);
    return result;
}

// The inode of a connection's socket here, by both its ends (16 bytes each, IPv4 mapped); 0 while nobody has accepted
// it. Undefined where there is none.
Napi::Value tcp_inode(const Napi::CallbackInfo &info) {
    const char *doing = "asking for a connection";
    auto env = info.Env();
    auto addresses = info[0].As<Napi::Uint8Array>();
    Address own, peer;
    Fd fd = open_diag(env);
    DiagRequest request = diag_request(AF_INET6, ~0u);
    Napi::Value inode = env.Undefined();

    memcpy(own.data(), addresses.Data(), own.size());
    memcpy(peer.data(), addresses.Data() + own.size(), peer.size());
    if (IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr *>(own.data()))) {
        request.body.sdiag_family = AF_INET;
        memcpy(request.body.id.idiag_src, &own[12], 4);
        memcpy(request.body.id.idiag_dst, &peer[12], 4);
    } else {
        memcpy(request.body.id.idiag_src, own.data(), own.size());
        memcpy(request.body.id.idiag_dst, peer.data(), peer.size());
    }
    request.body.id.idiag_sport = htons(info[1].As<Napi::Number>().Uint32Value());
    request.body.id.idiag_dport = htons(info[2].As<Napi::Number>().Uint32Value());
    request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    int error = ask(env, fd.get(), request.header, doing, [&](const nlmsghdr *message) {
        auto *diag = diag_of(message);
        if (diag && diag->idiag_state != TCP_LISTEN)
            inode = Napi::Number::New(env, diag->idiag_inode);
    });
    if (error && error != ENOENT)
        throw kernel_error(env, error, "recv", doing);
    return inode;
}

} // namespace

void define_listeners(Napi::Env env, Napi::Object exports) {
    exports.Set("tcpListeners", Napi::Function::New(env, tcp_listeners));
    exports.Set("udpListeners", Napi::Function::New(env, udp_listeners));
    exports.Set("tcpInode", Napi::Function::New(env, tcp_inode));
}

} // namespace ns
