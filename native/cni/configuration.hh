// The network configuration on stdin: what of it is ours, checked; the rest as text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cni {

struct Attachment {
    std::string container_id;
    std::string ifname;
};

struct Configuration {
    std::string cni_version;
    std::string socket = "/run/nodesentry/cni.sock";
    bool open = false; // failure: open
    long timeout_ms = 10000;
    std::string log_file;
    std::string rule; // what becomes of pods while no agent runs, where nothing is left beside the socket
    // Views of the text that was read; empty where not given.
    std::string_view prev_result;
    std::string_view annotations;
    bool has_attachments = false;
    std::vector<Attachment> attachments;
};

// Throws Error: 6 where `text` is not a JSON object, 7 naming the key that is wrong. cniVersion is not judged here.
Configuration read_configuration(std::string_view text);

// What can be had for a DEL, which must not fail: a key that is wrong has its default.
Configuration read_leniently(std::string_view text);

// Throws Error with code 1 unless the plugin speaks `version` and that version has the command.
void check_version(const std::string &version, const char *since, const std::string &command);

// The JSON list of versions that the plugin speaks.
std::string supported_versions();

} // namespace cni
