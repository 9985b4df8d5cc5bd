#include "races.h"

#include "memory.h"

namespace sim {

void Races::split(uintptr_t at) {
    auto after = cells_.upper_bound(at);
    if (after == cells_.begin()) return;
    auto cell = std::prev(after);
    if (cell->first == at || cell->second.end <= at) return;
    Cell upper = cell->second;
    cell->second.end = at;
    cells_.emplace_hint(after, at, std::move(upper));
}

void Races::compare(const Access &old, bool old_write, const Access &now, bool now_write, const Clock &clock,
                    uintptr_t begin, uintptr_t end) {
    if (old.timeline < 0 || old.timeline == now.timeline) return;
    auto timeline = static_cast<size_t>(old.timeline);
    if (timeline < clock.size() && clock[timeline] >= old.epoch) return;
    auto verb = [](bool write) { return std::string(write ? "write" : "read"); };
    std::string missing = now.timeline == 0 ? "the host has not waited for that stream's work"
                                            : "no event recorded after that " + verb(old_write) +
                                                  " is waited for before this " + verb(now_write);
    std::string pair =
        verb(now_write) + " by " + *now.label + " and earlier " + verb(old_write) + " by " + *old.label;
    report("race: " + pair + ", on " + bytes_of(begin, end - begin) + ": " + missing);
}

void Races::touch(uintptr_t begin, size_t bytes, bool write, const Clock &clock, const Access &access) {
    if (!enabled || !bytes) return;
    uintptr_t end = begin + bytes;
    split(begin);
    split(end);
    auto first = cells_.lower_bound(begin);
    for (auto cell = first; cell != cells_.end() && cell->first < end; ++cell) {
        compare(cell->second.writer, true, access, write, clock, cell->first, cell->second.end);
        if (write)
            for (auto &reader : cell->second.readers)
                compare(reader, false, access, true, clock, cell->first, cell->second.end);
    }
    if (write) {  // one cell takes the place of all
        cells_.erase(first, cells_.lower_bound(end));
        cells_[begin] = Cell{end, access, {}};
        return;
    }
    uintptr_t at = begin;
    for (auto cell = first; at < end;) {
        if (cell == cells_.end() || cell->first > at) {
            uintptr_t stop = cell == cells_.end() || cell->first > end ? end : cell->first;
            cells_.emplace_hint(cell, at, Cell{stop, {}, {access}});
            at = stop;
            continue;
        }
        auto &readers = cell->second.readers;
        bool known = false;
        for (auto &reader : readers)
            if (reader.timeline == access.timeline) known = true, reader = access;
        if (!known) readers.push_back(access);
        at = cell->second.end;
        ++cell;
    }
}

void Races::forget(uintptr_t begin, size_t bytes) {
    split(begin);
    split(begin + bytes);
    cells_.erase(cells_.lower_bound(begin), cells_.lower_bound(begin + bytes));
}

void Races::report(const std::string &text) {
    // The same pair on other bytes is the same mistake: the first place stands for all.
    std::string key = text.substr(0, text.find(", on "));
    auto [entry, fresh] = found_.try_emplace(key, text, 0);
    if (fresh) order_.push_back(key);
    ++entry->second.second;
}

void Races::clear() { *this = Races(); }

std::vector<std::string> Races::lines() const {
    std::vector<std::string> lines;
    for (auto &key : order_) {
        auto &[text, count] = found_.at(key);
        lines.push_back(text + (count > 1 ? " (" + std::to_string(count) + " times)" : ""));
    }
    return lines;
}

}  // namespace sim
