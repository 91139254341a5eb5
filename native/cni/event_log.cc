#include "event_log.hh"

#include <ctime>
#include <fcntl.h>

#include "io.hh"
#include "json.hh"

namespace cni {

namespace {

std::string timestamp() {
    timespec now = {};
    tm parts = {};
    char text[40];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t length = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
    std::string ms = std::to_string(now.tv_nsec / 1000000 + 1000).substr(1);
    return std::string(text, length) + "." + ms + "Z";
}

const char *name_of(Level level) {
    switch (level) {
    case Level::kInfo:
        return "info";
    case Level::kWarn:
        return "warn";
    case Level::kError:
        return "error";
    }
    return "error";
}

} // namespace

void log_event(const std::string &log_file, Level level, const Parameters &parameters, const std::string &message) {
    std::string line = "{\"level\":" + json_string(name_of(level)) + ",\"time\":" + json_string(timestamp()) +
                       ",\"pid\":" + std::to_string(getpid()) + ",\"part\":\"nodesentry-cni\"";
    auto field = [&](const char *name, const std::string &value) {
        if (!value.empty())
            line += "," + json_string(name) + ":" + json_string(value);
    };
    field("command", parameters.command_name);
    field("containerId", parameters.container_id);
    field("ifname", parameters.ifname);
    field("podNamespace", parameters.pod_namespace);
    field("podName", parameters.pod_name);
    field("msg", message);
    line += "}\n";
    if (!log_file.empty()) {
        // Appending one line with one write: plugins that run at once do not mix theirs.
        Fd file(open(log_file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640));
        if (file && write_all(file.get(), line))
            return;
    }
    if (level != Level::kInfo)
        write_all(STDERR_FILENO, line);
}

} // namespace cni
