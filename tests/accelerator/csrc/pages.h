// Host memory behind the segments of all arenas.
#pragma once

#include <cstddef>

namespace lowtide_sim {

// Address space of `bytes`, which costs host memory only where it is written; nullptr: none left.
void* take_pages(size_t bytes);
// Done with what take_pages gave, of the same size: the host has it back, or it is kept for the
// next segment of that size (arena_settings().keep_pages).
void give_back_pages(void* address, size_t bytes);
// Give the host what is kept.
void drop_pages();

}  // namespace lowtide_sim
