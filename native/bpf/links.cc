// Attaching: links (tcx, cgroup, sk_lookup), sk_msg to a map, and clsact filters where there is no tcx.
#include <fcntl.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bpf_syscall.hh"
#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

constexpr uint32_t kMaxPrograms = 64; // the kernel's limit for one tcx hook

Napi::Value link_create(const Napi::CallbackInfo &info) {
    int fd = bpf_link_create(fd_argument(info, 0), fd_argument(info, 1),
                             static_cast<bpf_attach_type>(info[2].As<Napi::Number>().Uint32Value()), nullptr);

    if (fd < 0)
        throw kernel_error(info.Env(), errno, "bpf", text_argument(info, 3));
    return Napi::Number::New(info.Env(), fd);
}

Napi::Value link_info(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    bpf_link_info link = {};
    uint32_t length = sizeof(link);

    if (bpf_obj_get_info_by_fd(fd_argument(info, 0), &link, &length))
        throw kernel_error(env, errno, "bpf", "reading a link's description");
    auto result = Napi::Object::New(env);
    result.Set("id", link.id);
    result.Set("programId", link.prog_id);
    result.Set("type", static_cast<uint32_t>(link.type));
    return result;
}

void link_update(const Napi::CallbackInfo &info) {
    if (bpf_link_update(fd_argument(info, 0), fd_argument(info, 1), nullptr))
        throw kernel_error(info.Env(), errno, "bpf", "exchanging a link's program");
}

void link_detach(const Napi::CallbackInfo &info) {
    if (bpf_link_detach(fd_argument(info, 0)))
        throw kernel_error(info.Env(), errno, "bpf", "detaching a link");
}

Napi::Value query_tcx(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    uint32_t programs[kMaxPrograms] = {}, links[kMaxPrograms] = {};
    QueryAttr attr = {};

    attr.target_ifindex = info[0].As<Napi::Number>().Uint32Value();
    attr.attach_type = info[1].As<Napi::Number>().Uint32Value();
    attr.prog_ids = reinterpret_cast<uint64_t>(programs);
    attr.link_ids = reinterpret_cast<uint64_t>(links);
    attr.count = kMaxPrograms;
    if (query_programs(&attr)) {
        // ENOENT: nothing was ever attached at this hook.
        if (errno != ENOENT)
            throw kernel_error(env, errno, "bpf", "asking what is attached to an interface");
        attr.count = 0;
    }
    auto result = Napi::Array::New(env);
    for (uint32_t i = 0; i < attr.count && i < kMaxPrograms; i++) {
        auto entry = Napi::Object::New(env);
        entry.Set("programId", programs[i]);
        entry.Set("linkId", links[i]);
        result.Set(i, entry);
    }
    return result;
}

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

// True where the clsact qdisc had to be created.
Napi::Value attach_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 1);
    int error = bpf_tc_hook_create(&tc.hook);

    if (error && error != -EEXIST)
        throw kernel_error(env, -error, "sendmsg", "adding the clsact qdisc");
    bool created = error == 0;

    tc.options.prog_fd = fd_argument(info, 0);
    tc.options.flags = BPF_TC_F_REPLACE; // of the filter at our own priority and handle only
    error = bpf_tc_attach(&tc.hook, &tc.options);
    if (error) {
        if (created) {
            tc.hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
            bpf_tc_hook_destroy(&tc.hook);
        }
        throw kernel_error(env, -error, "sendmsg", "adding a tc filter");
    }
    return Napi::Boolean::New(env, created);
}

Napi::Value query_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 0);
    int error = bpf_tc_query(&tc.hook, &tc.options);

    if (error == -ENOENT || error == -EINVAL) // no such filter, or no clsact qdisc
        return env.Undefined();
    if (error)
        throw kernel_error(env, -error, "sendmsg", "asking for a tc filter");
    return Napi::Number::New(env, tc.options.prog_id);
}

Napi::Value detach_clsact(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Hook tc = tc_hook(info, 0);
    int error = bpf_tc_detach(&tc.hook, &tc.options);

    if (error && error != -ENOENT && error != -EINVAL)
        throw kernel_error(env, -error, "sendmsg", "removing a tc filter");
    bool removed = error == 0;
    if (removed && info[4].As<Napi::Boolean>()) {
        tc.hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
        error = bpf_tc_hook_destroy(&tc.hook);
        if (error && error != -ENOENT)
            throw kernel_error(env, -error, "sendmsg", "removing the clsact qdisc");
    }
    return Napi::Boolean::New(env, removed);
}

void attach_sk_msg(const Napi::CallbackInfo &info) {
    if (bpf_prog_attach(fd_argument(info, 0), fd_argument(info, 1), BPF_SK_MSG_VERDICT, 0))
        throw kernel_error(info.Env(), errno, "bpf", "attaching an sk_msg program to a map");
}

void detach_sk_msg(const Napi::CallbackInfo &info) {
    if (bpf_prog_detach2(fd_argument(info, 0), fd_argument(info, 1), BPF_SK_MSG_VERDICT))
        throw kernel_error(info.Env(), errno, "bpf", "detaching an sk_msg program from a map");
}

Napi::Value attach_cgroup(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string path = text_argument(info, 1);
    Fd cgroup(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));

    if (!cgroup)
        throw kernel_error(env, errno, "open", "opening the cgroup " + path);
    int fd = bpf_link_create(fd_argument(info, 0), cgroup.get(),
                             static_cast<bpf_attach_type>(info[2].As<Napi::Number>().Uint32Value()), nullptr);
    if (fd < 0)
        throw kernel_error(env, errno, "bpf", "attaching a program to the cgroup " + path);
    return Napi::Number::New(env, fd);
}

} // namespace

void define_links(Napi::Env env, Napi::Object exports) {
    exports.Set("linkCreate", Napi::Function::New(env, link_create));
    exports.Set("linkInfo", Napi::Function::New(env, link_info));
    exports.Set("linkUpdate", Napi::Function::New(env, link_update));
    exports.Set("linkDetach", Napi::Function::New(env, link_detach));
    exports.Set("queryTcx", Napi::Function::New(env, query_tcx));
    exports.Set("attachClsact", Napi::Function::New(env, attach_clsact));
    exports.Set("queryClsact", Napi::Function::New(env, query_clsact));
    exports.Set("detachClsact", Napi::Function::New(env, detach_clsact));
    exports.Set("attachSkMsg", Napi::Function::New(env, attach_sk_msg));
    exports.Set("detachSkMsg", Napi::Function::New(env, detach_sk_msg));
    exports.Set("attachCgroup", Napi::Function::New(env, attach_cgroup));
}

} // namespace ns
