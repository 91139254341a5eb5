// TCP sockets of the current network namespace, by sock_diag(7): filtered by state in the kernel.
#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <vector>

#include <linux/rtnetlink.h>

#include "functions.hh"
#include "sock_diag.hh"

namespace ns {

namespace {

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

// Calls `each` for every socket in one of these states.
template <typename Each> void dump(Napi::Env env, uint8_t family, uint32_t states, const char *doing, Each each) {
    Fd fd = open_diag(env);
    DiagRequest request = diag_request(family, states);
    int error = ask(env, fd.get(), request.header, doing, [&](const nlmsghdr *message) {
        if (auto *diag = diag_of(message))
            each(message, diag);
    });
    if (error)
        throw kernel_error(env, error, "recv", doing);
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

using Address = std::array<uint8_t, 16>; // IPv4 in its mapped form, as an IPv6 socket has it

Address address_of(const inet_diag_msg *diag, const __be32 *from) {
    Address address = {};

    if (diag->idiag_family == AF_INET6) {
        memcpy(address.data(), from, address.size());
    } else {
        address[10] = address[11] = 0xff;
        memcpy(&address[12], from, 4);
    }
    return address;
}

// Older kernels do not tell, and of a socket in TIME_WAIT none does.
bool is_transparent(const nlmsghdr *message, const inet_diag_msg *diag) {
    auto *options =
        static_cast<const inet_diag_sockopt *>(attribute(message, diag, INET_DIAG_SOCKOPT, sizeof(inet_diag_sockopt)));

    return options ? options->transparent == 1 : diag->idiag_state != TCP_TIME_WAIT;
}

// How many connections bear one of these addresses as their own, or as their peer's on a transparent socket.
Napi::Value tcp_connections(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto bytes = info[0].As<Napi::Uint8Array>();
    std::vector<Address> wanted(bytes.ByteLength() / sizeof(Address));
    uint32_t count = 0;

    memcpy(wanted.data(), bytes.Data(), wanted.size() * sizeof(Address));
    auto is_wanted = [&](const Address &address) {
        return std::find(wanted.begin(), wanted.end(), address) != wanted.end();
    };
    for (uint8_t family : {AF_INET, AF_INET6}) {
        dump(env, family, ~kListen, "asking for connections", [&](const nlmsghdr *message, const inet_diag_msg *diag) {
            if (is_wanted(address_of(diag, diag->id.idiag_src)) ||
                (is_wanted(address_of(diag, diag->id.idiag_dst)) && is_transparent(message, diag)))
                count++;
        });
    }
    return Napi::Number::New(env, count);
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
    exports.Set("tcpInode", Napi::Function::New(env, tcp_inode));
    exports.Set("tcpConnections", Napi::Function::New(env, tcp_connections));
}

} // namespace ns
