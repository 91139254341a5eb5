#pragma once

#include <fcntl.h>
#include <string>

#include <bpf/libbpf.h>
#include <napi.h>

namespace ns {

class Object : public Napi::ObjectWrap<Object> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit Object(const Napi::CallbackInfo &info);
    ~Object() override;

  private:
    void set_read_only_data(const Napi::CallbackInfo &info);
    void reuse_map(const Napi::CallbackInfo &info);
    void load(const Napi::CallbackInfo &info);
    Napi::Value map_shape(const Napi::CallbackInfo &info);
    Napi::Value map_fd(const Napi::CallbackInfo &info);
    Napi::Value program_fd(const Napi::CallbackInfo &info);
    Napi::Value layout(const Napi::CallbackInfo &info);
    Napi::Value enum_values(const Napi::CallbackInfo &info);
    void close(const Napi::CallbackInfo &info);

    bpf_object *get(Napi::Env env) const;
    Napi::Value duplicate(Napi::Env env, int fd, const std::string &what) const;
    void release();

    std::string path_;
    bpf_object *object_ = nullptr;
};

} // namespace ns
