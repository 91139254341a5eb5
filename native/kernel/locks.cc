// Advisory locks on whole files: they end with the process, however it ends.
#include <sys/file.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

Napi::Value try_lock(const Napi::CallbackInfo &info) {
    if (flock(fd_argument(info, 0), LOCK_EX | LOCK_NB) == 0)
        return Napi::Boolean::New(info.Env(), true);
    if (errno == EWOULDBLOCK)
        return Napi::Boolean::New(info.Env(), false);
    throw kernel_error(info.Env(), errno, "flock", "locking a file");
}

} // namespace

void define_locks(Napi::Env env, Napi::Object exports) {
    exports.Set("tryLock", Napi::Function::New(env, try_lock));
}

} // namespace ns
