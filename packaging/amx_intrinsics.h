/* Mends `_tile_loadconfig` for llama.cpp; included before every file that the installer has compiled.

   GCC's own (amxtileintrin.h; seen in 12.2) names 8 of the 64 bytes of a tile configuration as
   read. The optimizer drops what was written into the others, and the first prompt ends the engine with SIGILL
   on every CPU that has AMX. Which releases have been mended since is not asked: this one is right with all. */

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

static inline void appliance_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%0" : : "m"(*(const char (*)[64])config));
}
#define _tile_loadconfig(config) appliance_tile_loadconfig(config)

#endif
