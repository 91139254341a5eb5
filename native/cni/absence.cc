#include "absence.hh"

#include <fcntl.h>
#include <optional>

#include "io.hh"
#include "json.hh"

namespace cni {

namespace {

constexpr long kReadMs = 1000;

std::string beside(const std::string &socket, const char *name) {
    return socket.substr(0, socket.rfind('/') + 1) + name;
}

std::optional<std::string> read_file(const std::string &path) {
    Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    std::string text;

    if (!file || read_all(file.get(), Deadline::in_ms(kReadMs), text) != Io::kDone)
        return std::nullopt;
    return text;
}

// Field 22 of proc(5)'s stat, which tells a process from a later one with its pid. The name in field 2 may hold
// anything.
std::string start_time(const std::string &pid) {
    auto stat = read_file("/proc/" + pid + "/stat");
    size_t at = stat ? stat->rfind(')') : std::string::npos;

    if (at == std::string::npos)
        return "";
    for (int field = 2; field < 22 && at != std::string::npos; field++)
        at = stat->find(' ', at + 1);
    return at == std::string::npos ? "" : stat->substr(at + 1, stat->find(' ', at + 1) - at - 1);
}

// A boot empties the folder of the socket; what the last agent before it left on disk holds until the next one comes.
std::optional<std::string> rule_text(const Configuration &configuration) {
    auto text = read_file(beside(configuration.socket, "cni-rule.json"));

    return text || configuration.rule.empty() ? text : read_file(configuration.rule);
}

std::optional<Json> read_rule(const Configuration &configuration) {
    auto text = rule_text(configuration);

    if (!text)
        return std::nullopt;
    try {
        Json rule = parse_shallow(*text);
        if (rule.is_object() && rule.contains("version") && rule["version"] == 1)
            return rule;
    } catch (const Json::exception &) {
        // As good as none.
    }
    return std::nullopt;
}

// What is not understood holds the pod up.
Absence absence_of(const Json &word) {
    return word == "admit" ? Absence::kAdmit : word == "wait" ? Absence::kWait : Absence::kHold;
}

// Nothing where the rule does not name it.
std::optional<Absence> lookup(const Json &rule, const char *table, const std::string &name) {
    if (name.empty() || !rule.contains(table) || !rule[table].is_object() || !rule[table].contains(name))
        return std::nullopt;
    return absence_of(rule[table][name]);
}

std::string annotation_of(const Configuration &configuration, const Json &rule) {
    if (configuration.annotations.empty() || !rule.contains("annotation") || !rule["annotation"].is_string())
        return "";
    Json annotations = parse_shallow(configuration.annotations);
    auto key = rule["annotation"].get<std::string>();
    return annotations.contains(key) && annotations[key].is_string() ? annotations[key].get<std::string>() : "";
}

Absence others(const Json &rule, const char *key) {
    return rule.contains(key) ? absence_of(rule[key]) : Absence::kHold;
}

} // namespace

bool agent_lives(const std::string &socket) {
    std::string named = read_file(beside(socket, "agent.pid")).value_or("");
    size_t space = named.find(' ');

    if (space == 0 || space == std::string::npos || named.find_first_not_of("0123456789") != space)
        return false;
    std::string started = named.substr(space + 1, named.find_last_not_of(" \n") - space);
    return !started.empty() && start_time(named.substr(0, space)) == started;
}

bool rule_is_left(const Configuration &configuration) {
    return read_rule(configuration).has_value();
}

// The pod's own word comes first, as for the agent: an annotation wins over its labels, and they over its namespace.
Judgement judge(const Configuration &configuration, const Parameters &parameters) {
    auto rule = read_rule(configuration);

    if (!rule)
        return {Absence::kHold, "the agent has left no rule for that"};
    std::string said = annotation_of(configuration, *rule);
    if (!said.empty())
        return {lookup(*rule, "annotations", said).value_or(others(*rule, "otherAnnotations")),
                "its annotation says " + json_string(said)};
    if (auto known = lookup(*rule, "pods", parameters.pod_uid))
        return {*known, "the agent knew it"};
    if (auto known = lookup(*rule, "namespaces", parameters.pod_namespace))
        return {*known, "the agent has not seen this pod, but knew its namespace"};
    return {others(*rule, "others"), "nothing is known of it that enrols it"};
}

} // namespace cni
