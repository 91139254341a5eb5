// Programs, pins and the bpffs they stand in.
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <vector>

#include <linux/magic.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

std::string hex(const uint8_t *bytes, size_t length) {
    static const char digits[] = "0123456789abcdef";
    std::string text;

    for (size_t i = 0; i < length; i++) {
        text += digits[bytes[i] >> 4];
        text += digits[bytes[i] & 15];
    }
    return text;
}

Napi::Value describe(Napi::Env env, int fd) {
    bpf_prog_info program = {};
    uint32_t length = sizeof(program);

    if (bpf_obj_get_info_by_fd(fd, &program, &length))
        throw kernel_error(env, errno, "bpf", "reading a program's description");
    auto result = Napi::Object::New(env);
    result.Set("name", program.name);
    result.Set("type", program.type);
    result.Set("id", program.id);
    result.Set("tag", hex(program.tag, sizeof(program.tag)));
    return result;
}

Napi::Value program_info(const Napi::CallbackInfo &info) {
    return describe(info.Env(), fd_argument(info, 0));
}

Napi::Value program_info_by_id(const Napi::CallbackInfo &info) {
    Fd fd(bpf_prog_get_fd_by_id(info[0].As<Napi::Number>().Uint32Value()));

    if (fd)
        return describe(info.Env(), fd.get());
    if (errno == ENOENT)
        return info.Env().Undefined();
    throw kernel_error(info.Env(), errno, "bpf", "opening a program by id");
}

Napi::Value test_run(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto data = info[1].As<Napi::Uint8Array>();
    auto context = info[2].As<Napi::Uint8Array>();
    // A program may grow the packet by as much as it has headroom for.
    std::vector<uint8_t> data_out(data.ByteLength() + 512), context_out(context.ByteLength());

    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = data.Data(), .data_out = data_out.data(),
                .data_size_in = static_cast<uint32_t>(data.ByteLength()),
                .data_size_out = static_cast<uint32_t>(data_out.size()),
                .ctx_in = context.ByteLength() ? context.Data() : nullptr,
                .ctx_out = context.ByteLength() ? context_out.data() : nullptr,
                .ctx_size_in = static_cast<uint32_t>(context.ByteLength()),
                .ctx_size_out = static_cast<uint32_t>(context_out.size()),
                .repeat = info[3].As<Napi::Number>().Int32Value(), );
    if (bpf_prog_test_run_opts(fd_argument(info, 0), &options))
        throw kernel_error(env, errno, "bpf", "running a program on test data");
    auto result = Napi::Object::New(env);
    result.Set("retval", options.retval);
    result.Set("durationNs", options.duration);
    result.Set("data", Napi::Buffer<uint8_t>::Copy(env, data_out.data(), options.data_size_out));
    result.Set("context", Napi::Buffer<uint8_t>::Copy(env, context_out.data(), context_out.size()));
    return result;
}

// Live frames go on into the stack of the current network namespace, as if `ifindex` had received them.
void inject(const Napi::CallbackInfo &info) {
    auto data = info[1].As<Napi::Uint8Array>();
    xdp_md context = {};

    context.data_end = static_cast<uint32_t>(data.ByteLength());
    context.ingress_ifindex = info[2].As<Napi::Number>().Uint32Value();
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = data.Data(),
                .data_size_in = static_cast<uint32_t>(data.ByteLength()), .ctx_in = &context,
                .ctx_size_in = sizeof(context), .repeat = 1, .flags = BPF_F_TEST_XDP_LIVE_FRAMES, );
    if (bpf_prog_test_run_opts(fd_argument(info, 0), &options))
        throw kernel_error(info.Env(), errno, "bpf",
                           "injecting a frame at ifindex " + std::to_string(context.ingress_ifindex));
}

void pin(const Napi::CallbackInfo &info) {
    std::string path = text_argument(info, 1);

    if (bpf_obj_pin(fd_argument(info, 0), path.c_str()))
        throw kernel_error(info.Env(), errno, "bpf", "pinning " + path);
}

// What a descriptor is, only its name in /proc says: the kernel describes a map, a program and a link by one call, and
// does not mind which of them the caller takes it for.
bool is_a(int fd, const std::string &kind) {
    char target[64] = "";
    ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), target, sizeof(target) - 1);
    std::string name(target, length > 0 ? length : 0);

    return name == "anon_inode:bpf-" + kind || name == "anon_inode:bpf_" + kind;
}

Napi::Value open_pinned(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string path = text_argument(info, 0), kind = text_argument(info, 1);
    Fd fd(bpf_obj_get(path.c_str()));

    if (!fd)
        throw kernel_error(env, errno, "bpf", "opening the pin " + path);
    if (!is_a(fd.get(), kind))
        throw kernel_error(env, EINVAL, "bpf", "the pin " + path + " is not of a " + kind);
    return Napi::Number::New(env, fd.release());
}

bool is_bpffs_at(const std::string &path) {
    struct statfs fs = {};

    return statfs(path.c_str(), &fs) == 0 && static_cast<unsigned long>(fs.f_type) == BPF_FS_MAGIC;
}

Napi::Value is_bpffs(const Napi::CallbackInfo &info) {
    return Napi::Boolean::New(info.Env(), is_bpffs_at(text_argument(info, 0)));
}

Napi::Value mount_bpffs(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string path = text_argument(info, 0);

    if (is_bpffs_at(path))
        return Napi::Boolean::New(env, false);
    if (mkdir(path.c_str(), 0700) && errno != EEXIST)
        throw kernel_error(env, errno, "mkdir", "creating " + path);
    if (mount("bpf", path.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"))
        throw kernel_error(env, errno, "mount", "mounting a bpffs at " + path);
    return Napi::Boolean::New(env, true);
}

void close_fd(const Napi::CallbackInfo &info) {
    close(fd_argument(info, 0));
}

} // namespace

void define_programs(Napi::Env env, Napi::Object exports) {
    exports.Set("programInfo", Napi::Function::New(env, program_info));
    exports.Set("programInfoById", Napi::Function::New(env, program_info_by_id));
    exports.Set("testRun", Napi::Function::New(env, test_run));
    exports.Set("inject", Napi::Function::New(env, inject));
    exports.Set("pin", Napi::Function::New(env, pin));
    exports.Set("openPinned", Napi::Function::New(env, open_pinned));
    exports.Set("isBpffs", Napi::Function::New(env, is_bpffs));
    exports.Set("mountBpffs", Napi::Function::New(env, mount_bpffs));
    exports.Set("closeFd", Napi::Function::New(env, close_fd));
}

} // namespace ns
