// Attaching by links: tcx, sk_lookup, tracepoints.
#include <algorithm>
#include <vector>

#include <bpf/bpf.h>

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

// To the tracepoint that the program itself names.
Napi::Value attach_tracepoint(const Napi::CallbackInfo &info) {
    int fd = bpf_raw_tracepoint_open(nullptr, fd_argument(info, 0));

    if (fd < 0)
        throw kernel_error(info.Env(), errno, "bpf", text_argument(info, 1));
    return Napi::Number::New(info.Env(), fd);
}

// On a thread of the pool: the kernel waits for a grace period of RCU before tcx is attached, some 20 ms.
class LinkCreation : public Napi::AsyncWorker {
  public:
    LinkCreation(Napi::Env env, int program, int target, uint32_t type, std::string doing)
        : Napi::AsyncWorker(env), promise_(Napi::Promise::Deferred::New(env)), program_(copy_of(env, program)),
          target_(target), type_(type), doing_(std::move(doing)) {}
    Napi::Promise promise() const {
        return promise_.Promise();
    }

  protected:
    void Execute() override {
        link_.reset(bpf_link_create(program_.get(), target_, static_cast<bpf_attach_type>(type_), nullptr));
        error_ = errno;
    }
    void OnOK() override {
        if (link_)
            promise_.Resolve(Napi::Number::New(Env(), link_.release()));
        else
            promise_.Reject(kernel_error(Env(), error_, "bpf", doing_).Value());
    }

  private:
    Napi::Promise::Deferred promise_;
    Fd program_, link_;
    int target_;
    uint32_t type_;
    int error_ = 0;
    std::string doing_;
};

Napi::Value link_create_async(const Napi::CallbackInfo &info) {
    auto *creation = new LinkCreation(info.Env(), fd_argument(info, 0), fd_argument(info, 1),
                                      info[2].As<Napi::Number>().Uint32Value(), text_argument(info, 3));
    auto promise = creation->promise();

    creation->Queue();
    return promise;
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

// What runs at a tcx hook, in its order, and how many. `links` may be null. Negative: errno says why not.
int programs_at(uint32_t ifindex, uint32_t attach_type, uint32_t *programs, uint32_t *links) {
    QueryAttr attr = {};

    attr.target_ifindex = ifindex;
    attr.attach_type = attach_type;
    attr.prog_ids = reinterpret_cast<uint64_t>(programs);
    attr.link_ids = reinterpret_cast<uint64_t>(links);
    attr.count = kMaxPrograms;
    if (!query_programs(&attr))
        return static_cast<int>(std::min(attr.count, kMaxPrograms));
    return errno == ENOENT ? 0 : -1; // nothing was ever attached at this hook
}

Napi::Value query_tcx(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    uint32_t programs[kMaxPrograms] = {}, links[kMaxPrograms] = {};
    int count = programs_at(info[0].As<Napi::Number>().Uint32Value(), info[1].As<Napi::Number>().Uint32Value(),
                            programs, links);

    if (count < 0)
        throw kernel_error(env, errno, "bpf", "asking what is attached to an interface");
    auto result = Napi::Array::New(env);
    for (int i = 0; i < count; i++) {
        auto entry = Napi::Object::New(env);
        entry.Set("programId", programs[i]);
        entry.Set("linkId", links[i]);
        result.Set(i, entry);
    }
    return result;
}

// For each interface how many programs run there, and their ids: nothing at one that is gone.
Napi::Value tcx_programs(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto interfaces = info[0].As<Napi::Uint32Array>();
    auto attach_type = info[1].As<Napi::Number>().Uint32Value();
    std::vector<uint32_t> found;

    found.reserve(interfaces.ElementLength() * 2);
    for (size_t i = 0; i < interfaces.ElementLength(); i++) {
        uint32_t programs[kMaxPrograms] = {};
        int count = programs_at(interfaces[i], attach_type, programs, nullptr);

        if (count < 0 && errno != ENODEV)
            throw kernel_error(env, errno, "bpf", "asking what is attached to interfaces");
        count = std::max(count, 0);
        found.push_back(count);
        found.insert(found.end(), programs, programs + count);
    }
    auto result = Napi::Uint32Array::New(env, found.size());
    std::copy(found.begin(), found.end(), result.Data());
    return result;
}

} // namespace

void define_links(Napi::Env env, Napi::Object exports) {
    exports.Set("attachTracepoint", Napi::Function::New(env, attach_tracepoint));
    exports.Set("linkCreate", Napi::Function::New(env, link_create));
    exports.Set("linkCreateAsync", Napi::Function::New(env, link_create_async));
    exports.Set("linkInfo", Napi::Function::New(env, link_info));
    exports.Set("linkUpdate", Napi::Function::New(env, link_update));
    exports.Set("linkDetach", Napi::Function::New(env, link_detach));
    exports.Set("queryTcx", Napi::Function::New(env, query_tcx));
    exports.Set("tcxPrograms", Napi::Function::New(env, tcx_programs));
}

} // namespace ns
