#include "configuration.hh"

#include <cstring>
#include <functional>
#include <sys/un.h>

#include "json.hh"
#include "outcome.hh"

namespace cni {

namespace {

// Oldest first. Their ADD results differ, but only in fields that pass through here untouched.
constexpr const char *kSupported[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};
constexpr const char *kAnnotationsCapability = "io.kubernetes.cri.pod-annotations";
constexpr long kMaxTimeoutMs = 600000;

int age_of(const std::string &version) {
    for (size_t index = 0; index < std::size(kSupported); index++)
        if (version == kSupported[index])
            return static_cast<int>(index);
    return -1;
}

Json parse_object(std::string_view text) {
    Json parsed;

    try {
        parsed = parse_shallow(text);
    } catch (const Json::exception &error) {
        throw Error(kDecodingFailure, "the network configuration on stdin is not JSON", error.what());
    }
    if (!parsed.is_object())
        throw Error(kDecodingFailure, "the network configuration on stdin is not a JSON object",
                    std::string("it is of type ") + parsed.type_name());
    return parsed;
}

[[noreturn]] void wrong(const std::string &key, const std::string &expected, const Json &got) {
    std::string shown = got.is_primitive() ? got.dump(-1, ' ', false, Json::error_handler_t::replace) : got.type_name();
    throw Error(kInvalidConfiguration, key + ": expected " + expected + ", got " + shown);
}

void read_version(const Json &given, Configuration &into) {
    if (!given.is_string())
        wrong("cniVersion", "a string", given);
    into.cni_version = given.get<std::string>();
}

void read_socket(const Json &given, Configuration &into) {
    static const std::string expected = "the absolute path of a Unix socket, at most 107 bytes long";
    if (!given.is_string())
        wrong("socket", expected, given);
    auto path = given.get<std::string>();
    if (path.empty() || path[0] != '/' || path.size() >= sizeof(sockaddr_un::sun_path) ||
        path.find('\0') != std::string::npos)
        wrong("socket", expected, given);
    into.socket = path;
}

void read_failure(const Json &given, Configuration &into) {
    if (given != "closed" && given != "open")
        wrong("failure", "closed or open", given);
    into.open = given == "open";
}

void read_timeout(const Json &given, Configuration &into) {
    static const std::string expected = "a whole number of milliseconds from 1 to 600000";
    if (!given.is_number_integer() || given < 1 || given > kMaxTimeoutMs)
        wrong("timeoutMs", expected, given);
    into.timeout_ms = given.get<long>();
}

void read_log_file(const Json &given, Configuration &into) {
    if (!given.is_string() || given.get_ref<const std::string &>().substr(0, 1) != "/")
        wrong("logFile", "an absolute path", given);
    into.log_file = given.get<std::string>();
}

void read_rule_path(const Json &given, Configuration &into) {
    if (!given.is_string() || given.get_ref<const std::string &>().substr(0, 1) != "/")
        wrong("rule", "an absolute path", given);
    into.rule = given.get<std::string>();
}

void read_attachments(const std::string &key, const Json &given, Configuration &into) {
    if (!given.is_array())
        wrong(key, "a list of attachments", given);
    into.has_attachments = true;
    for (size_t index = 0; index < given.size(); index++) {
        const Json &entry = given[index];
        auto field = [&](const char *name) {
            if (!entry.is_object() || !entry.contains(name) || !entry[name].is_string())
                wrong(key + "[" + std::to_string(index) + "]." + name, "a string",
                      entry.is_object() && entry.contains(name) ? entry[name] : Json());
            return entry[name].get<std::string>();
        };
        into.attachments.push_back({field("containerID"), field("ifname")});
    }
}

// `attempt` runs a reader; it decides what an Error means.
using Attempt = std::function<void(const std::function<void()> &)>;

Configuration read(std::string_view text, const Attempt &attempt) {
    Json parsed = parse_object(text);
    auto raw = raw_members(text);
    Configuration result;

    auto given = [&](const char *key) { return parsed.contains(key) && !parsed[key].is_null(); };
    auto key = [&](const char *name, void (*read_key)(const Json &, Configuration &)) {
        if (given(name))
            attempt([&] { read_key(parsed[name], result); });
    };
    key("cniVersion", read_version);
    key("socket", read_socket);
    key("failure", read_failure);
    key("timeoutMs", read_timeout);
    key("logFile", read_log_file);
    key("rule", read_rule_path);
    if (given("prevResult"))
        attempt([&] {
            if (!parsed["prevResult"].is_object())
                wrong("prevResult", "a JSON object", parsed["prevResult"]);
            result.prev_result = raw["prevResult"];
        });
    if (given("runtimeConfig"))
        attempt([&] {
            const Json &capabilities = parsed["runtimeConfig"];
            if (!capabilities.is_object())
                wrong("runtimeConfig", "a JSON object", capabilities);
            if (!capabilities.contains(kAnnotationsCapability) || capabilities[kAnnotationsCapability].is_null())
                return; // containerd writes null for a pod without annotations
            if (!capabilities[kAnnotationsCapability].is_object())
                wrong(std::string("runtimeConfig[\"") + kAnnotationsCapability + "\"]", "a JSON object",
                      capabilities[kAnnotationsCapability]);
            result.annotations = raw_members(raw["runtimeConfig"])[kAnnotationsCapability];
        });
    // The second is what libcni calls it beside the name in the specification (containernetworking/cni issue 1101).
    for (const char *name : {"cni.dev/valid-attachments", "cni.dev/attachments"})
        if (!result.has_attachments && given(name))
            attempt([&] { read_attachments(name, parsed[name], result); });
    return result;
}

} // namespace

Configuration read_configuration(std::string_view text) {
    return read(text, [](const auto &step) { step(); });
}

Configuration read_leniently(std::string_view text) {
    try {
        return read(text, [](const auto &step) {
            try {
                step();
            } catch (const Error &) {
            }
        });
    } catch (const Error &) {
        return {};
    }
}

void check_version(const std::string &version, const char *since, const std::string &command) {
    int age = age_of(version);

    if (age < 0)
        throw Error(kIncompatibleVersion,
                    (version.empty() ? "cniVersion is missing" : "cniVersion " + version + " is not supported") +
                        std::string(", supported are ") + supported_versions());
    if (age < age_of(since))
        throw Error(kIncompatibleVersion,
                    "cniVersion " + version + " does not have the command " + command + ", which came with " + since);
}

std::string supported_versions() {
    return Json(kSupported).dump();
}

} // namespace cni
