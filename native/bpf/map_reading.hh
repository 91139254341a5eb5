// Reading all entries of a map, on whichever thread.
#pragma once

#include <cstdint>
#include <vector>

#include <napi.h>

namespace ns {

// Keys and values side by side, each a multiple of its size long.
struct Entries {
    std::vector<uint8_t> keys, values;
    uint32_t count = 0;

    // As JavaScript sees them: PackedEntries in src/native/bpf-addon.ts.
    Napi::Object in(Napi::Env env) const;
};

// In batches where the map type has them. Entries may come and go meanwhile.
Entries read_entries(int fd, uint32_t key_size, uint32_t value_size, uint32_t max_entries);

} // namespace ns
