// tc filters, for kernels without tcx.
#include <string>
#include <sys/socket.h>

#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include <bpf/libbpf.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

struct Hook {
    bpf_tc_hook hook;
    bpf_tc_opts options;
};

Hook tc_hook(const Napi::CallbackInfo &info, size_t first) {
    Hook result = {};

    result.hook.sz = sizeof(result.hook);
    result.hook.ifindex = info[first].As<Napi::Number>().Int32Value();
    result.hook.attach_point = info[first + 1].As<Napi::Boolean>() ? BPF_TC_INGRESS : BPF_TC_EGRESS;
    result.options.sz = sizeof(result.options);
    result.options.priority = info[first + 2].As<Napi::Number>().Uint32Value();
    result.options.handle = info[first + 3].As<Napi::Number>().Uint32Value();
    return result;
}

// "clsact" or "ingress", whichever stands at the place that only one of them can have; empty without one.
std::string qdisc_kind(Napi::Env env, int ifindex) {
    struct {
        nlmsghdr header;
        tcmsg body;
    } request = {};
    alignas(nlmsghdr) char reply[8192];
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));

    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = RTM_GETQDISC;
    // Without ECHO the kernel tells listeners only; without a qdisc its ACK is the whole answer.
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK;
    request.body.tcm_ifindex = ifindex;
    request.body.tcm_parent = TC_H_INGRESS;
    if (!fd || send(fd.get(), &request, sizeof(request), 0) < 0)
        throw kernel_error(env, errno, "sendmsg", "asking for the clsact qdisc");
    ssize_t length = recv(fd.get(), reply, sizeof(reply), 0);
    auto *message = reinterpret_cast<const nlmsghdr *>(reply);
    if (length < 0 || !NLMSG_OK(message, static_cast<uint32_t>(length)))
        throw kernel_error(env, length < 0 ? errno : EBADMSG, "recvmsg", "asking for the clsact qdisc");
    if (message->nlmsg_type == NLMSG_ERROR) {
        int error = -static_cast<const nlmsgerr *>(NLMSG_DATA(message))->error;
        if (error == 0 || error == ENOENT)
            return "";
        throw kernel_error(env, error, "sendmsg", "asking for the clsact qdisc");
    }
    auto *tc = static_cast<const tcmsg *>(NLMSG_DATA(message));
    int left = message->nlmsg_len - NLMSG_LENGTH(sizeof(*tc));
    for (auto *attribute = TCA_RTA(tc); RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type == TCA_KIND)
            return static_cast<const char *>(RTA_DATA(attribute));
    }
    return "";
}

// An ingress qdisc takes a filter for egress without a word, and runs it at ingress.
bool has_place(const bpf_tc_hook &hook, const std::string &kind) {
    return kind == "clsact" || (kind == "ingress" && hook.attach_point == BPF_TC_INGRESS);
}

// Removes the whole qdisc with every filter on it.
int destroy_qdisc(bpf_tc_hook hook) {
    hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
    return bpf_tc_hook_destroy(&hook);
}

// True where the clsact qdisc had to be created.
Napi::Value attach_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 1);
    int error = bpf_tc_hook_create(&tc.hook);

    if (error && error != -EEXIST)
        throw kernel_error(env, -error, "sendmsg", "adding the clsact qdisc");
    bool created = error == 0;
    if (!created && !has_place(tc.hook, qdisc_kind(env, tc.hook.ifindex)))
        throw kernel_error(env, EEXIST, "sendmsg", "adding the clsact qdisc where an ingress qdisc stands");

    tc.options.prog_fd = fd_argument(info, 0);
    tc.options.flags = BPF_TC_F_REPLACE; // of the filter at our own priority and handle only
    error = bpf_tc_attach(&tc.hook, &tc.options);
    if (error) {
        if (created)
            destroy_qdisc(tc.hook);
        throw kernel_error(env, -error, "sendmsg", "adding a tc filter");
    }
    return Napi::Boolean::New(env, created);
}

Napi::Value query_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 0);

    if (!has_place(tc.hook, qdisc_kind(env, tc.hook.ifindex)))
        return env.Undefined();
    int error = bpf_tc_query(&tc.hook, &tc.options);
    if (error == -ENOENT || error == -EINVAL) // no such filter, or one that is not of BPF
        return env.Undefined();
    if (error)
        throw kernel_error(env, -error, "sendmsg", "asking for a tc filter");
    return Napi::Number::New(env, tc.options.prog_id);
}

Napi::Value detach_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 0);

    if (!has_place(tc.hook, qdisc_kind(env, tc.hook.ifindex)))
        return Napi::Boolean::New(env, false);
    int error = bpf_tc_detach(&tc.hook, &tc.options);
    if (error && error != -ENOENT && error != -EINVAL)
        throw kernel_error(env, -error, "sendmsg", "removing a tc filter");
    bool removed = error == 0;
    if (removed && info[4].As<Napi::Boolean>()) {
        error = destroy_qdisc(tc.hook);
        if (error && error != -ENOENT)
            throw kernel_error(env, -error, "sendmsg", "removing the clsact qdisc");
    }
    return Napi::Boolean::New(env, removed);
}

} // namespace

void define_clsact(Napi::Env env, Napi::Object exports) {
    exports.Set("attachClsact", Napi::Function::New(env, attach_clsact));
    exports.Set("queryClsact", Napi::Function::New(env, query_clsact));
    exports.Set("detachClsact", Napi::Function::New(env, detach_clsact));
}

} // namespace ns
