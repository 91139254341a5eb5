// nodesentry-cni: the chained CNI plugin. It asks the agent, and returns when the pod's datapath is in place.
// The CNI specification 0.3.1 (what primary CNIs still ship), 0.4.0, 1.0.0 and 1.1.0: https://www.cni.dev/docs/spec/
#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <unistd.h>

#include "commands.hh"
#include "event_log.hh"
#include "io.hh"
#include "json.hh"
#include "outcome.hh"

namespace cni {

namespace {

constexpr long kStdinMs = 10000;

std::string read_stdin() {
    std::string text;

    switch (read_all(STDIN_FILENO, Deadline::in_ms(kStdinMs), text)) {
    case Io::kDone:
        return text;
    case Io::kTimedOut:
        throw Error(kIoFailure, "the network configuration did not end on stdin within 10 s");
    case Io::kTooLong:
        throw Error(kInvalidConfiguration, "the network configuration on stdin is longer than 1 MiB");
    case Io::kFailed:
        break;
    }
    throw Error(kIoFailure, std::string("reading the network configuration on stdin: ") + strerror(errno));
}

// Of whatever version the question is, or if it is no question at all.
int version() {
    std::string text, asked = kLatestVersion;

    if (read_all(STDIN_FILENO, Deadline::in_ms(kStdinMs), text) == Io::kDone) {
        try {
            Json question = parse_shallow(text);
            if (question.is_object() && question.contains("cniVersion") && question["cniVersion"].is_string())
                asked = question["cniVersion"].get<std::string>();
        } catch (const Json::exception &) {
            // The answer is the same for a question that cannot be read.
        }
    }
    std::string answer =
        "{\"cniVersion\":" + json_string(asked) + ",\"supportedVersions\":" + supported_versions() + "}\n";
    return write_all(STDOUT_FILENO, answer) ? 0 : 1;
}

Configuration read_for_del(const std::string &text, const Parameters &parameters) {
    Configuration configuration = read_leniently(text);

    try {
        read_configuration(text);
    } catch (const Error &error) {
        log_event(configuration.log_file, Level::kWarn, parameters, error.what());
    }
    return configuration;
}

// The pod is going, with or without us: an error here would only keep the runtime from letting it go.
int best_effort_del(long started_ms) {
    Parameters parameters = {Command::kDel, "DEL", "", "", "", "", "", ""};
    Configuration configuration;
    std::string text;

    try {
        text = read_stdin();
        parameters = read_parameters(Command::kDel);
        configuration = read_for_del(text, parameters);
        del({parameters, configuration, started_ms});
    } catch (const std::exception &error) {
        log_event(configuration.log_file, Level::kWarn, parameters, error.what());
    }
    return 0;
}

void run(Command command, const Call &call) {
    const auto &name = call.parameters.command_name;
    bool late = command == Command::kStatus || command == Command::kGc;
    const char *since = late ? "1.1.0" : command == Command::kCheck ? "0.4.0" : "0.3.1";

    check_version(call.configuration.cni_version, since, name);
    switch (command) {
    case Command::kAdd:
        return add(call);
    case Command::kCheck:
        return check(call);
    case Command::kStatus:
        return status(call);
    case Command::kGc:
        return gc(call);
    case Command::kDel:
    case Command::kVersion:
        break;
    }
}

int fail(const Configuration &configuration, const Parameters &parameters, int code, const std::string &message,
         const std::string &details) {
    std::string known = configuration.cni_version.empty() ? kLatestVersion : configuration.cni_version;
    std::string text = "{\"cniVersion\":" + json_string(code == kIncompatibleVersion ? kLatestVersion : known) +
                       ",\"code\":" + std::to_string(code) + ",\"msg\":" + json_string(message) +
                       (details.empty() ? "" : ",\"details\":" + json_string(details)) + "}\n";

    if (!configuration.log_file.empty())
        log_event(configuration.log_file, Level::kError, parameters, message);
    write_all(STDOUT_FILENO, text);
    return 1;
}

int serve() {
    long started_ms = now_ms();
    Parameters parameters = {Command::kAdd, "", "", "", "", "", "", ""};
    Configuration configuration;
    std::string text; // what the configuration has views of

    try {
        Command command = read_command();
        if (command == Command::kVersion)
            return version();
        if (command == Command::kDel)
            return best_effort_del(started_ms);
        parameters = read_parameters(command);
        text = read_stdin();
        configuration = read_configuration(text);
        run(command, {parameters, configuration, started_ms});
        return 0;
    } catch (const Error &error) {
        return fail(configuration, parameters, error.code(), error.what(), error.details());
    } catch (const std::exception &error) {
        return fail(configuration, parameters, kInternal, error.what(), "");
    }
}

} // namespace

} // namespace cni

int main() {
    signal(SIGPIPE, SIG_IGN);
    return cni::serve();
}
