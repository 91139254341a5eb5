// What the runtime says in the environment: CNI specification, section 2, "Parameters".
#pragma once

#include <string>

namespace cni {

enum class Command { kAdd, kDel, kCheck, kVersion, kStatus, kGc };

struct Parameters {
    Command command;
    std::string command_name;
    std::string container_id;
    std::string netns;
    std::string ifname;
    // Of CNI_ARGS; empty where the runtime does not say.
    std::string pod_uid;
    std::string pod_namespace;
    std::string pod_name;
};

// Throws Error with code 4 that names every variable that is missing or wrong.
Command read_command();
Parameters read_parameters(Command command);

// Throws Error with code 4 unless CNI_NETNS is the path of a network namespace.
void check_netns(const std::string &path);

} // namespace cni
