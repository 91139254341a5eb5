// Network namespaces: entered by the calling thread for the length of one synchronous call, and always left again.
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <linux/nsfs.h>

#include <memory>
#include <string>

#include "common/errors.hh"
#include "common/visit.hh"
#include "functions.hh"

namespace ns {

namespace {

Napi::Value open_namespace(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string path = text_argument(info, 0);
    Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));

    if (!fd)
        throw kernel_error(env, errno, "open", "opening the network namespace " + path);
    int type = ioctl(fd.get(), NS_GET_NSTYPE);
    if (type < 0)
        throw kernel_error(env, errno, "ioctl", path + " is not a namespace");
    if (type != CLONE_NEWNET)
        throw kernel_error(env, EINVAL, "ioctl", path + " is a namespace, but not of the network");
    return Napi::Number::New(env, fd.release());
}

Napi::Value with_netns(const Napi::CallbackInfo &info) {
    Visit visit(fd_argument(info, 0));

    if (visit.error())
        throw kernel_error(info.Env(), visit.error(), "setns", "entering a network namespace");
    return info[1].As<Napi::Function>().Call({});
}

Napi::Value netns_identity(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    struct stat status = {};

    if (fstat(fd_argument(info, 0), &status))
        throw kernel_error(env, errno, "fstat", "identifying a network namespace");
    auto result = Napi::Object::New(env);
    result.Set("dev", Napi::BigInt::New(env, static_cast<uint64_t>(status.st_dev)));
    result.Set("inode", Napi::BigInt::New(env, static_cast<uint64_t>(status.st_ino)));
    return result;
}

Napi::Value interface_index(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string name = text_argument(info, 0);
    unsigned index = if_nametoindex(name.c_str());

    if (index)
        return Napi::Number::New(env, index);
    if (errno == ENODEV)
        return env.Undefined();
    throw kernel_error(env, errno, "ioctl", "looking for the interface " + name);
}

// Index and name of each, in the kernel's order: two such texts are the same as long as no interface comes or goes.
Napi::Value interfaces(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::unique_ptr<struct if_nameindex[], decltype(&if_freenameindex)> all(if_nameindex(), &if_freenameindex);

    if (!all)
        throw kernel_error(env, errno, "netlink", "listing interfaces");
    std::string text;
    for (auto *each = all.get(); each->if_index; each++)
        text += std::to_string(each->if_index) + " " + each->if_name + "\n";
    return Napi::String::New(env, text);
}

void close_fd(const Napi::CallbackInfo &info) {
    if (close(fd_argument(info, 0)))
        throw kernel_error(info.Env(), errno, "close", "closing a descriptor");
}

} // namespace

void define_namespaces(Napi::Env env, Napi::Object exports) {
    exports.Set("openNamespace", Napi::Function::New(env, open_namespace));
    exports.Set("withNetns", Napi::Function::New(env, with_netns));
    exports.Set("netnsIdentity", Napi::Function::New(env, netns_identity));
    exports.Set("interfaceIndex", Napi::Function::New(env, interface_index));
    exports.Set("interfaces", Napi::Function::New(env, interfaces));
    exports.Set("closeFd", Napi::Function::New(env, close_fd));
}

} // namespace ns
