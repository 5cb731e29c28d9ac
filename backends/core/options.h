// Options of a backend: words by name, as Python hands them over. Readers of one option each, which throw
// Failure(usage) in the name of `backend` with the option, its value and what is allowed.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "types.h"

namespace aio {

using Options = std::map<std::string, std::string>;

// Options of the core, which every native backend has (core_options.h).
inline constexpr std::array<std::string_view, 3> kCoreOptionNames{"cpus", "progress", "spin_us"};

// An empty word counts as absent.
inline std::string option(const Options& options, const char* name, const std::string& otherwise) {
  const auto found = options.find(name);
  return found == options.end() || found->second.empty() ? otherwise : found->second;
}

[[noreturn]] inline void refuse_option(const char* backend, const std::string& name, const std::string& value,
                                       const std::string& allowed) {
  throw Failure(Failure::Kind::usage, backend, "option " + name + " is " + value + ": allowed are " + allowed);
}

namespace detail {

inline std::string to_text(double value) {
  std::array<char, 32> text{};
  const bool is_whole = value > -1e15 && value < 1e15 && value == static_cast<double>(static_cast<long long>(value));
  std::snprintf(text.data(), text.size(), is_whole ? "%.0f" : "%g", value);
  return text.data();
}

// from_chars, not strtod: a program may have set a locale with another decimal point.
template <class T>
std::optional<T> parsed(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace detail

// A number between `least` and `most`.
inline double number(const char* backend, const Options& options, const char* name, double otherwise, double least,
                     double most) {
  const std::string text = option(options, name, "");
  if (text.empty()) return otherwise;
  const auto value = detail::parsed<double>(text);
  if (!value || !(*value >= least && *value <= most)) {
    refuse_option(backend, name, text, detail::to_text(least) + " … " + detail::to_text(most));
  }
  return *value;
}

// A whole number between `least` and `most`.
inline std::uint64_t whole_number(const char* backend, const Options& options, const char* name,
                                  std::uint64_t otherwise, std::uint64_t least, std::uint64_t most) {
  const std::string text = option(options, name, "");
  if (text.empty()) return otherwise;
  const auto value = detail::parsed<std::uint64_t>(text);
  const std::string range = std::to_string(least) + " … " + std::to_string(most);
  if (!value) refuse_option(backend, name, text, "whole numbers " + range);
  if (*value < least || *value > most) refuse_option(backend, name, text, range);
  return *value;
}

inline std::optional<bool> yes_or_no(const char* backend, const Options& options, const char* name) {
  const std::string text = option(options, name, "");
  if (text.empty()) return std::nullopt;
  const bool yes = text == "1" || text == "True" || text == "true";
  if (!yes && text != "0" && text != "False" && text != "false") {
    refuse_option(backend, name, text, "true, false, 1 and 0");
  }
  return yes;
}

// One of a few words.
inline std::string one_of(const char* backend, const Options& options, const char* name, const std::string& otherwise,
                          std::initializer_list<std::string_view> allowed) {
  const std::string text = option(options, name, otherwise);
  if (std::ranges::find(allowed, text) != allowed.end()) return text;
  std::string list;
  for (const std::string_view word : allowed) {
    list += (list.empty() ? "" : ", ") + std::string(word);
  }
  refuse_option(backend, name, text, list);
}

// Refuses every option that is neither one of `own` nor one of the core's.
inline void check_option_names(const char* backend, const Options& options,
                               std::initializer_list<std::string_view> own) {
  std::vector<std::string_view> known(own);
  known.insert(known.end(), kCoreOptionNames.begin(), kCoreOptionNames.end());
  std::ranges::sort(known);
  for (const auto& [name, value] : options) {
    if (std::ranges::binary_search(known, name)) continue;
    std::string list;
    for (const std::string_view word : known) list += (list.empty() ? "" : ", ") + std::string(word);
    throw Failure(Failure::Kind::usage, backend, "there is no option " + name + ": allowed are " + list);
  }
}

}  // namespace aio
