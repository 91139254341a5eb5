#include "parameters.hh"

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <string_view>
#include <sys/ioctl.h>
#include <vector>

#include <linux/if.h>
#include <linux/nsfs.h>

#include "io.hh"
#include "json.hh"
#include "outcome.hh"

namespace cni {

namespace {

struct Name {
    const char *text;
    Command command;
};

constexpr Name kCommands[] = {
    {"ADD", Command::kAdd},         {"DEL", Command::kDel},       {"CHECK", Command::kCheck},
    {"VERSION", Command::kVersion}, {"STATUS", Command::kStatus}, {"GC", Command::kGc},
};

std::string variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

std::vector<const char *> required_by(Command command) {
    switch (command) {
    case Command::kAdd:
    case Command::kCheck:
        return {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"};
    case Command::kDel:
        return {"CNI_CONTAINERID", "CNI_IFNAME"};
    case Command::kGc:
        return {"CNI_PATH"};
    case Command::kVersion:
    case Command::kStatus:
        return {};
    }
    return {};
}

bool is_alphanumeric(unsigned char c) {
    return c < 0x80 && isalnum(c);
}

void check_container_id(const std::string &id) {
    bool good = is_alphanumeric(static_cast<unsigned char>(id[0]));
    for (unsigned char c : id)
        good = good && (is_alphanumeric(c) || strchr("_.-", c));
    if (!good)
        throw Error(kInvalidEnvironment,
                    "CNI_CONTAINERID: expected letters, digits, '_', '.' and '-', got " + json_string(id));
}

// As the kernel's dev_valid_name.
void check_ifname(const std::string &name) {
    bool good = name.size() < IFNAMSIZ && name != "." && name != "..";
    for (unsigned char c : name)
        good = good && c != '/' && c != ':' && !isspace(c);
    if (!good)
        throw Error(kInvalidEnvironment, "CNI_IFNAME: expected the name of an interface, got " + json_string(name));
}

void read_args(std::string_view args, Parameters &parameters) {
    while (!args.empty()) {
        std::string_view pair = args.substr(0, args.find(';'));
        args.remove_prefix(std::min(args.size(), pair.size() + 1));
        if (pair.empty())
            continue;
        size_t equals = pair.find('=');
        if (equals == 0 || equals == std::string_view::npos)
            throw Error(kInvalidEnvironment, "CNI_ARGS: expected KEY=VALUE;…, got " + json_string(pair));
        std::string_view key = pair.substr(0, equals);
        std::string value(pair.substr(equals + 1));
        if (key == "K8S_POD_UID")
            parameters.pod_uid = value;
        else if (key == "K8S_POD_NAMESPACE")
            parameters.pod_namespace = value;
        else if (key == "K8S_POD_NAME")
            parameters.pod_name = value;
    }
}

} // namespace

Command read_command() {
    std::string given = variable("CNI_COMMAND");

    if (given.empty())
        throw Error(kInvalidEnvironment, "CNI_COMMAND is missing",
                    "this is a CNI plugin: a container runtime calls it, see https://www.cni.dev");
    for (const auto &[text, command] : kCommands)
        if (given == text)
            return command;
    throw Error(kInvalidEnvironment,
                "CNI_COMMAND: expected ADD, DEL, CHECK, VERSION, STATUS or GC, got " + json_string(given));
}

Parameters read_parameters(Command command) {
    std::string missing;

    for (const char *name : required_by(command))
        if (variable(name).empty())
            missing += (missing.empty() ? "" : ", ") + std::string(name);
    if (!missing.empty())
        throw Error(kInvalidEnvironment, "missing in the environment: " + missing);
    Parameters parameters = {command,
                             variable("CNI_COMMAND"),
                             variable("CNI_CONTAINERID"),
                             variable("CNI_NETNS"),
                             variable("CNI_IFNAME"),
                             "",
                             "",
                             ""};
    if (command == Command::kAdd || command == Command::kCheck || command == Command::kDel) {
        check_container_id(parameters.container_id);
        check_ifname(parameters.ifname);
        read_args(variable("CNI_ARGS"), parameters);
    }
    return parameters;
}

void check_netns(const std::string &path) {
    Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));

    // Code 3 would tell the runtime that nothing needs to be cleaned up, and leak what the plugins before us made.
    if (!fd)
        throw Error(kInvalidEnvironment, "CNI_NETNS: cannot open " + path + ": " + strerror(errno));
    if (ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET)
        throw Error(kInvalidEnvironment, "CNI_NETNS: " + path + " is not a network namespace");
}

} // namespace cni
