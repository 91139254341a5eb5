// JSON as the plugin needs it: read what is ours, hand on the text of what is not.
#pragma once

#include <map>
#include <string>
#include <string_view>

#define JSON_NO_IO // no iostreams in a static binary
#include <nlohmann/json.hpp>

namespace cni {

using Json = nlohmann::ordered_json;

// Without what is nested deeper than anything we read: its depth is up to whoever wrote it, that of our stack is not.
// Throws Json::exception.
Json parse_shallow(std::string_view text);

// The members of an object as they were written: numbers keep their digits, keys their order, whatever a parser would
// make of them. `text` has to be valid JSON. Of a key that stands twice the last counts, as for Go and nlohmann.
std::map<std::string, std::string_view> raw_members(std::string_view text);

// Bytes that are no UTF-8, as an environment can bring them, come out as U+FFFD.
std::string json_string(std::string_view text);

} // namespace cni
