#include "json.hh"

namespace cni {

namespace {

constexpr std::string_view kSpace = " \t\r\n";
constexpr int kDeepest = 4;

class Scanner {
  public:
    explicit Scanner(std::string_view text) : text_(text) {}

    char next_token() {
        at_ = std::min(text_.find_first_not_of(kSpace, at_), text_.size());
        return at_ < text_.size() ? text_[at_] : '\0';
    }

    void step() {
        at_++;
    }

    std::string_view string() {
        size_t start = at_++;
        while (text_.at(at_) != '"')
            at_ += text_[at_] == '\\' ? 2 : 1;
        at_++;
        return text_.substr(start, at_ - start);
    }

    std::string_view value() {
        size_t start = at_;
        size_t depth = 0;
        do {
            switch (next_token()) {
            case '"':
                string();
                break;
            case '{':
            case '[':
                depth++;
                at_++;
                break;
            case '}':
            case ']':
                depth--;
                at_++;
                break;
            case ',':
            case ':':
                at_++;
                break;
            default:
                at_ = std::min(text_.find_first_of(" \t\r\n,:]}", at_), text_.size());
            }
        } while (depth > 0);
        return text_.substr(start, at_ - start);
    }

  private:
    std::string_view text_;
    size_t at_ = 0;
};

} // namespace

Json parse_shallow(std::string_view text) {
    return Json::parse(text, [](int depth, Json::parse_event_t, Json &) { return depth <= kDeepest; });
}

std::map<std::string, std::string_view> raw_members(std::string_view text) {
    std::map<std::string, std::string_view> members;
    Scanner scanner(text);

    if (scanner.next_token() != '{')
        return members;
    scanner.step();
    while (scanner.next_token() == '"') {
        auto key = Json::parse(scanner.string()).get<std::string>();
        scanner.next_token();
        scanner.step(); // the colon
        scanner.next_token();
        members.insert_or_assign(std::move(key), scanner.value());
        if (scanner.next_token() == ',')
            scanner.step();
    }
    return members;
}

std::string json_string(std::string_view text) {
    return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace cni
