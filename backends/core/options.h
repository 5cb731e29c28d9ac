// What a transport is told when it is opened: words, by the names that its domain.h lists.
#pragma once

#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "types.h"

namespace aio {

using Options = std::map<std::string, std::string>;

// An empty word is as none.
inline std::string option(const Options& options, const char* name, const std::string& otherwise) {
  const auto found = options.find(name);
  return found == options.end() || found->second.empty() ? otherwise : found->second;
}

// The next two throw Failure(usage) in the name of `backend`, for words that are no such value.
inline double number(const char* backend, const Options& options, const char* name, double otherwise, double least,
                     double most) {
  const std::string text = option(options, name, "");
  if (text.empty()) return otherwise;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (*end != '\0' || !(value >= least && value <= most)) {
    throw Failure(Failure::Kind::usage, backend, "option " + std::string(name) + " is " + text);
  }
  return value;
}

inline std::optional<bool> yes_or_no(const char* backend, const Options& options, const char* name) {
  const std::string text = option(options, name, "");
  if (text.empty()) return std::nullopt;
  const bool yes = text == "1" || text == "True" || text == "true";
  if (!yes && text != "0" && text != "False" && text != "false") {
    throw Failure(Failure::Kind::usage, backend, "option " + std::string(name) + " is " + text);
  }
  return yes;
}

}  // namespace aio
