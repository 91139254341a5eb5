// Which processes hold which sockets: only /proc tells, descriptor by descriptor.
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <memory>
#include <string>
#include <unistd.h>
#include <unordered_set>
#include <vector>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

struct Owner {
    uint64_t inode;
    uint32_t pid, fd;
};

struct Close {
    void operator()(DIR *folder) const {
        closedir(folder);
    }
};
using Folder = std::unique_ptr<DIR, Close>;

// The number that a name is; 0 for any other.
uint64_t number_of(const char *name) {
    char *end = nullptr;
    uint64_t number = strtoull(name, &end, 10);

    return end != name && *end == '\0' ? number : 0;
}

uint64_t socket_inode(int folder, const char *name) {
    char target[64] = "";
    unsigned long long inode = 0;

    if (readlinkat(folder, name, target, sizeof(target) - 1) <= 0)
        return 0;
    return sscanf(target, "socket:[%llu]", &inode) == 1 ? inode : 0;
}

// The descriptors of one process; takes out of `wanted` what it holds.
void search(uint64_t pid, std::unordered_set<uint64_t> &wanted, std::vector<Owner> &owners) {
    Folder descriptors(opendir(("/proc/" + std::to_string(pid) + "/fd").c_str()));

    while (dirent *descriptor = descriptors && !wanted.empty() ? readdir(descriptors.get()) : nullptr) {
        if (descriptor->d_type != DT_LNK)
            continue;
        uint64_t inode = socket_inode(dirfd(descriptors.get()), descriptor->d_name);
        if (wanted.erase(inode))
            owners.push_back(
                {inode, static_cast<uint32_t>(pid), static_cast<uint32_t>(strtoul(descriptor->d_name, nullptr, 10))});
    }
}

// Processes and descriptors that vanish meanwhile are passed over. Of several holders the one with the lowest pid, this
// process last of all: it keeps copies of what it opened for others.
std::vector<Owner> owners_of(std::unordered_set<uint64_t> wanted) {
    std::vector<Owner> owners;
    uint64_t own = getpid();
    Folder processes(opendir("/proc"));

    while (dirent *process = processes && !wanted.empty() ? readdir(processes.get()) : nullptr) {
        uint64_t pid = number_of(process->d_name);
        if (pid == 0 || pid == own)
            continue;
        search(pid, wanted, owners);
    }
    search(own, wanted, owners);
    return owners;
}

// On a thread of the pool: a node has thousands of processes.
class OwnerSearch : public Napi::AsyncWorker {
  public:
    OwnerSearch(Napi::Env env, std::unordered_set<uint64_t> wanted)
        : Napi::AsyncWorker(env), promise_(Napi::Promise::Deferred::New(env)), wanted_(std::move(wanted)) {}
    Napi::Promise promise() const {
        return promise_.Promise();
    }

  protected:
    void Execute() override {
        owners_ = owners_of(std::move(wanted_));
    }
    void OnOK() override {
        auto env = Env();
        auto result = Napi::Array::New(env, owners_.size());
        for (size_t i = 0; i < owners_.size(); i++) {
            auto entry = Napi::Object::New(env);
            entry.Set("inode", static_cast<double>(owners_[i].inode));
            entry.Set("pid", owners_[i].pid);
            entry.Set("fd", owners_[i].fd);
            result.Set(static_cast<uint32_t>(i), entry);
        }
        promise_.Resolve(result);
    }
    void OnError(const Napi::Error &error) override {
        promise_.Reject(error.Value());
    }

  private:
    Napi::Promise::Deferred promise_;
    std::unordered_set<uint64_t> wanted_;
    std::vector<Owner> owners_;
};

Napi::Value socket_owners(const Napi::CallbackInfo &info) {
    auto inodes = info[0].As<Napi::Array>();
    std::unordered_set<uint64_t> wanted;

    for (uint32_t i = 0; i < inodes.Length(); i++)
        wanted.insert(static_cast<uint64_t>(inodes.Get(i).As<Napi::Number>().Int64Value()));
    auto *search = new OwnerSearch(info.Env(), std::move(wanted));
    auto promise = search->promise();
    search->Queue();
    return promise;
}

} // namespace

void define_socket_owners(Napi::Env env, Napi::Object exports) {
    exports.Set("socketOwners", Napi::Function::New(env, socket_owners));
}

} // namespace ns
