// Interfaces whose ingress filters send packets out by another one (tc-mirred(8)): rate limits by IFB, for one.
#include <cstring>
#include <string>
#include <vector>

#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>

#include "common/errors.hh"
#include "common/netlink.hh"
#include "functions.hh"

namespace ns {

namespace {

struct Request {
    nlmsghdr header;
    tcmsg about;
};

using Attributes = std::vector<const rtattr *>;

// By type; a nest's own flag bits are left out.
Attributes attributes(const void *from, int length, size_t most) {
    Attributes found(most + 1, nullptr);

    for (auto *attribute = static_cast<const rtattr *>(from); RTA_OK(attribute, length);
         attribute = RTA_NEXT(attribute, length)) {
        size_t type = attribute->rta_type & NLA_TYPE_MASK;
        if (type <= most)
            found[type] = attribute;
    }
    return found;
}

Attributes nested(const rtattr *nest, size_t most) {
    return nest ? attributes(RTA_DATA(nest), static_cast<int>(RTA_PAYLOAD(nest)), most) : Attributes(most + 1, nullptr);
}

std::string text_of(const rtattr *attribute) {
    if (!attribute)
        return "";
    auto *text = static_cast<const char *>(RTA_DATA(attribute));
    return {text, strnlen(text, RTA_PAYLOAD(attribute))};
}

// Where the list of actions stands in the options of a filter of this kind; 0 where it is not known.
size_t actions_in(const std::string &kind) {
    if (kind == "u32")
        return TCA_U32_ACT;
    if (kind == "matchall")
        return TCA_MATCHALL_ACT;
    if (kind == "flower")
        return TCA_FLOWER_ACT;
    return kind == "basic" ? TCA_BASIC_ACT : 0;
}

// The interface that a filter redirects to; 0 for none.
uint32_t target_of(const nlmsghdr *message) {
    auto *about = static_cast<const tcmsg *>(NLMSG_DATA(message));
    auto filter = attributes(reinterpret_cast<const char *>(about) + NLMSG_ALIGN(sizeof(*about)),
                             static_cast<int>(message->nlmsg_len - NLMSG_LENGTH(sizeof(*about))), TCA_OPTIONS);
    size_t place = actions_in(text_of(filter[TCA_KIND]));
    if (!place)
        return 0;
    for (auto *action : nested(nested(filter[TCA_OPTIONS], place)[place], TCA_ACT_MAX_PRIO)) {
        auto parts = nested(action, TCA_ACT_OPTIONS);
        if (text_of(parts[TCA_ACT_KIND]) != "mirred")
            continue;
        auto *parameters = nested(parts[TCA_ACT_OPTIONS], TCA_MIRRED_PARMS)[TCA_MIRRED_PARMS];
        tc_mirred mirred = {};
        if (!parameters || RTA_PAYLOAD(parameters) < sizeof(mirred))
            continue;
        memcpy(&mirred, RTA_DATA(parameters), sizeof(mirred));
        if (mirred.eaction == TCA_EGRESS_REDIR)
            return mirred.ifindex;
    }
    return 0;
}

// An interface that has gone meanwhile has nothing to tell.
template <typename Each> void dump(Napi::Env env, int fd, Request &request, const char *doing, Each each) {
    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    int error = ask(env, fd, request.header, doing, [&](const nlmsghdr *message) {
        if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(tcmsg)))
            each(message);
    });
    if (error && error != ENODEV && error != ENOENT && error != EINVAL)
        throw kernel_error(env, error, "recv", doing);
}

Napi::Value redirects(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    auto sequence = info[1].As<Napi::Number>().Uint32Value();
    std::vector<int> interfaces;
    Request qdiscs = {};

    qdiscs.header.nlmsg_type = RTM_GETQDISC;
    qdiscs.header.nlmsg_seq = sequence;
    dump(env, fd, qdiscs, "listing queueing disciplines", [&](const nlmsghdr *message) {
        auto *about = static_cast<const tcmsg *>(NLMSG_DATA(message));
        if (message->nlmsg_type == RTM_NEWQDISC && about->tcm_parent == TC_H_INGRESS)
            interfaces.push_back(about->tcm_ifindex);
    });
    auto result = Napi::Array::New(env);
    for (int ifindex : interfaces) {
        Request filters = {};
        uint32_t target = 0;

        filters.header.nlmsg_type = RTM_GETTFILTER;
        filters.header.nlmsg_seq = sequence;
        filters.about.tcm_ifindex = ifindex;
        filters.about.tcm_parent = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS);
        dump(env, fd, filters, "listing filters", [&](const nlmsghdr *message) {
            if (message->nlmsg_type == RTM_NEWTFILTER && !target)
                target = target_of(message);
        });
        if (target) {
            auto redirect = Napi::Object::New(env);
            redirect.Set("ifindex", ifindex);
            redirect.Set("target", target);
            result.Set(result.Length(), redirect);
        }
    }
    return result;
}

} // namespace

void define_redirects(Napi::Env env, Napi::Object exports) {
    exports.Set("redirects", Napi::Function::New(env, redirects));
}

} // namespace ns
