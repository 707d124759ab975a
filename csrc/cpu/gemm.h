// C = A B + bias for rows given as pointers and a B packed once; a row may lie in pieces.
//
// B (depth, columns) is packed in panels of kPanelVectors vectors; the last panel holds the vectors
// that are left. A panel stores its columns contiguously for each k, padded with zeros. The depth
// is walked in chunks whose panel stays in L2 while all rows pass over it. Each element of C is one
// chain of multiply-adds over k = 0, 1, ... (fused where the CPU can) that starts at the bias,
// whatever the block it is computed in: a row of C depends on its row of A alone, bit for bit. Rows
// of C are written up to the last whole vector.
#pragma once

#include <stddef.h>

#include "cpu/lanes.h"

namespace ADVCORE_NS {
namespace {

// Accumulators and operands must fit the registers: 32 with AVX-512, 16 otherwise. 3 x 4 gave base
// 42 Gflop/s where 6 x 2 gave 38, as SSE overwrites an operand and must copy.
constexpr int kBlockRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 3;
constexpr int kPanelVectors = kLanes == 16 ? 3 : kLanes == 8 ? 2 : 4;
constexpr int kDepthChunk = 1024;  // 192 KB of panel at v4; 128 (L1) was 2% slower at 784 inputs

inline int vectors(int columns) { return (columns + kLanes - 1) / kLanes; }

size_t packed_floats(int depth, int columns) {
  return static_cast<size_t>(depth) * static_cast<size_t>(vectors(columns)) * kLanes;
}

void pack(const float* m, int depth, int columns, size_t row_step, size_t column_step,
          float* packed) {
  for (int first = 0; first < vectors(columns); first += kPanelVectors) {
    const int last =
        first + kPanelVectors < vectors(columns) ? first + kPanelVectors : vectors(columns);
    for (int k = 0; k < depth; ++k)
      for (int j = first * kLanes; j < last * kLanes; ++j)
        *packed++ =
            j < columns
                ? m[static_cast<size_t>(k) * row_step + static_cast<size_t>(j) * column_step]
                : 0.0f;
  }
}

// The place of the depth of a row of A: `segments` pieces of `length` floats, `step` floats apart.
// A matrix has one piece; a convolution has one for each row of its kernel.
struct Depth {
  int length, segments = 1;
  size_t step = 0;
};

// The input of a block of C: a part of the depth of the rows a, `offset` floats on; the panel b
// from there on; columns from `column` of the rows c. The first part starts at the bias (null:
// zero), later parts go on with what is in C.
struct Block {
  const float* const* a;
  float* const* c;
  const float* b;
  const float* bias;
  Depth depth;
  size_t offset;
  int column;
};

template <int R, int V>
void multiply(const Block& t) {
  const float* a[R];
  Lane acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = t.a[r] + t.offset;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int j = t.column + v * kLanes;
      acc[r][v] = t.offset > 0 ? load(t.c[r], j) : t.bias ? load(t.bias, j) : Lane{};
    }
  }
  const float* b = t.b;
  for (int segment = 0; segment < t.depth.segments; ++segment) {
    for (long k = 0; k < t.depth.length; ++k, b += V * kLanes) {
      Lane row[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) row[v] = load(b, v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Lane s = broadcast(a[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] += s * row[v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] += t.depth.step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(t.c[r], t.column + v * kLanes, acc[r][v]);
}

// Calls multiply<rows, width>.
template <int R, int V>
void dispatch(int rows, int width, const Block& t) {
  if constexpr (R > 1)
    if (rows < R) return dispatch<R - 1, V>(rows, width, t);
  if constexpr (V > 1)
    if (width < V) return dispatch<R, V - 1>(rows, width, t);
  multiply<R, V>(t);
}

// a: `rows` rows of that depth, b: packed (depth, columns), bias: (columns) padded, or null
void gemm(const float* const* a, int rows, Depth depth, const float* b, int columns,
          const float* bias, float* const* c) {
  const int total = vectors(columns);
  // A chunk of the depth: a part of the only piece, or whole pieces.
  const bool in_pieces = depth.segments > 1;
  const int group = in_pieces && depth.length < kDepthChunk ? kDepthChunk / depth.length : 1;
  const int chunk = in_pieces || depth.length < kDepthChunk ? depth.length : kDepthChunk;
  for (int first = 0; first < total; first += kPanelVectors) {
    const int width = total - first < kPanelVectors ? total - first : kPanelVectors;
    for (int segment = 0; segment < depth.segments; segment += group)
      for (int k0 = 0; k0 < depth.length; k0 += chunk) {
        const int length = depth.length - k0 < chunk ? depth.length - k0 : chunk;
        const int remaining = depth.segments - segment;
        const Depth part{length, remaining < group ? remaining : group, depth.step};
        const size_t offset = static_cast<size_t>(segment) * depth.step + static_cast<size_t>(k0);
        // Blocks of equal height, as a single row left over runs at a quarter of the speed.
        int blocks = (rows + kBlockRows - 1) / kBlockRows;
        for (int r = 0; r < rows; --blocks) {
          const int height = (rows - r + blocks - 1) / blocks;
          dispatch<kBlockRows, kPanelVectors>(
              height, width, {a + r, c + r, b, bias, part, offset, first * kLanes});
          r += height;
        }
        b += static_cast<size_t>(length) * static_cast<size_t>(part.segments) *
             static_cast<size_t>(width) * kLanes;
      }
  }
}

}  // namespace
}  // namespace ADVCORE_NS
