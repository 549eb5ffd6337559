// SPDX-License-Identifier: Apache-2.0
// The pillar encoder and the point head on a GPU; zeroflow_ros/lidar/pillars.py and point_head.py
// are the same in numpy.
//
// A cloud is 16 words and then its points, float x, y, z [m]. The words: the number of points (int), 3 unused ones, and
// the 3 x 4 matrix from the frame of the points into that of the grid. With the sizes in memory, the launches are the
// same for every sweep, so that they can be recorded once as a CUDA graph.
//
// Compile without contraction (-fmad=false): a multiplication and an addition in one rounding put points near a border
// in another cell than the CPU does. As C++ it runs on a CPU, one item after the other; the tests do that.

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define FOR_EACH(i, num) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (num); i += gridDim.x * blockDim.x)
#else
#include <cmath>
#define KERNEL extern "C" void
#define FOR_EACH(i, num) for (int i = 0; i < (num); ++i)
#endif

const int WORDS = 16;  // before the points

struct Point {
  float x, y, z;
};

#ifdef __CUDACC__
#define INLINE __device__ __forceinline__
#else
#define INLINE static inline
#endif

// Add to a number in memory; return what it was before.
template <class T>
INLINE T add(T* place, T value) {
#ifdef __CUDACC__
  return atomicAdd(place, value);
#else
  const T before = *place;
  *place = before + value;
  return before;
#endif
}

INLINE int num_points(const float* cloud) { return *reinterpret_cast<const int*>(cloud); }

// Point i in the frame of the grid; the order of the additions is that of the CPU.
INLINE Point moved(const float* cloud, int i) {
  const float* m = cloud + 4;
  const float* p = cloud + WORDS + 3 * i;
  return {p[0] * m[0] + p[1] * m[1] + p[2] * m[2] + m[3],
          p[0] * m[4] + p[1] * m[5] + p[2] * m[6] + m[7],
          p[0] * m[8] + p[1] * m[9] + p[2] * m[10] + m[11]};
}

// The image of a cloud takes four steps: all sums and the number of pillars become 0; assign_points; pool_pillars;
// write_image. Only occupied pillars are pooled, in a table that fits the GPU's cache, and only cells that are or were
// occupied are written: the image is larger than the cache.

// Find the cell of every point, number the occupied cells (pillars), and add up the points of each cell, as offsets
// from the centre of the cell: atomics add in any order, and sums of coordinates far from the vehicle would depend on it
// by up to 0.1 mm.
// centres: [cells], the centre of each column and of each row [m]. cell_index: [num_points], -1 outside. sums:
// [cells * cells][4], of x, y and z minus the centre, and of 1; all 0 before. num_pillars: 0 before. pillar_of_cell:
// [cells * cells], of occupied cells. cell_of_pillar: [num_pillars]. table: [num_pillars][num_channels], becomes 0.
KERNEL assign_points(const float* cloud, int cells, float inv_cell, float z_min, float z_max, float z_centre,
                     const float* centres, int num_channels, int* cell_index, float* sums, int* num_pillars,
                     int* pillar_of_cell, int* cell_of_pillar, float* table) {
  const float size = (float)cells, half = size * 0.5f;
  FOR_EACH(i, num_points(cloud)) {
    const Point p = moved(cloud, i);
    const float column = floorf(p.x * inv_cell + half), row = floorf(p.y * inv_cell + half);
    int cell = -1;
    // Written so that NaN is outside.
    if (column >= 0 && column < size && row >= 0 && row < size && p.z >= z_min && p.z < z_max) {
      cell = (int)row * cells + (int)column;
      add(&sums[4 * cell], p.x - centres[(int)column]);
      add(&sums[4 * cell + 1], p.y - centres[(int)row]);
      add(&sums[4 * cell + 2], p.z - z_centre);
      if (add(&sums[4 * cell + 3], 1.0f) == 0) {  // the first point of its cell
        const int pillar = add(num_pillars, 1);
        pillar_of_cell[cell] = pillar;
        cell_of_pillar[pillar] = cell;
        for (int c = 0; c < num_channels; ++c) table[pillar * num_channels + c] = 0;
      }
    }
    cell_index[i] = cell;
  }
}

// Average relu(Linear) over each pillar: one item per point and channel, so that a warp adds to neighbouring words.
// centres, cell_index, sums, pillar_of_cell: as above. weight: [num_channels][9], of xyz, xyz minus the mean of the
// pillar, xyz minus its centre. bias: [num_channels]. table: as above, the sum of the averages.
KERNEL pool_pillars(const float* cloud, int cells, float z_centre, const float* centres, const int* cell_index,
                    const float* sums, const int* pillar_of_cell, int num_channels, const float* weight,
                    const float* bias, float* table) {
  FOR_EACH(item, num_points(cloud) * num_channels) {
    const int i = item / num_channels, c = item % num_channels, cell = cell_index[i];
    if (cell < 0) continue;
    const Point p = moved(cloud, i);
    const float* sum = sums + 4 * cell;
    const float inv_count = 1.0f / sum[3];
    const float cx = p.x - centres[cell % cells], cy = p.y - centres[cell / cells], cz = p.z - z_centre;
    const float mx = cx - sum[0] * inv_count, my = cy - sum[1] * inv_count, mz = cz - sum[2] * inv_count;
    const float* w = weight + 9 * c;
    const float value = w[0] * p.x + w[1] * p.y + w[2] * p.z + w[3] * mx + w[4] * my + w[5] * mz + w[6] * cx +
                        w[7] * cy + w[8] * cz + bias[c];
    if (value > 0) add(&table[pillar_of_cell[cell] * num_channels + c], value * inv_count);
  }
}

// Write the pillars into the image, and 0 into the cells that were occupied in the sweep before and are not any more.
// sums, num_pillars, cell_of_pillar, table: as above. max_pillars: of any sweep. written: [max_pillars], the cells that
// are not 0 in the image, else -1; for the next sweep. image: [num_channels][cells * cells].
KERNEL write_image(int cells, int num_channels, int max_pillars, const float* sums, const int* num_pillars,
                   const int* cell_of_pillar, const float* table, int* written, float* image) {
  const int num_cells = cells * cells;
  FOR_EACH(pillar, max_pillars) {
    const int before = written[pillar], cell = pillar < *num_pillars ? cell_of_pillar[pillar] : -1;
    if (before >= 0 && sums[4 * before + 3] == 0)
      for (int c = 0; c < num_channels; ++c) image[(long long)c * num_cells + before] = 0;
    if (cell >= 0)
      for (int c = 0; c < num_channels; ++c)
        image[(long long)c * num_cells + cell] = table[pillar * num_channels + c];
    written[pillar] = cell;
  }
}

// Write what a network that takes points reads: the cell of every point, and its offset from the centre of that cell.
// A point without a cell gets the first one; mask_points makes its flow NaN.
// network_cell: [num_points]. offsets: [num_points][3] [m].
KERNEL offset_points(const float* cloud, int cells, float z_centre, const float* centres, const int* cell_index,
                     int* network_cell, float* offsets) {
  FOR_EACH(i, num_points(cloud)) {
    const int cell = cell_index[i] < 0 ? 0 : cell_index[i];
    const Point p = cell_index[i] < 0 ? Point{0, 0, 0} : moved(cloud, i);
    network_cell[i] = cell;
    offsets[3 * i] = p.x - centres[cell % cells];
    offsets[3 * i + 1] = p.y - centres[cell / cells];
    offsets[3 * i + 2] = p.z - z_centre;
  }
}

// Make the flow of every point without a cell NaN. flow: [num_points][3].
KERNEL mask_points(const float* cloud, const int* cell_index, float* flow) {
  FOR_EACH(i, num_points(cloud)) {
    if (cell_index[i] < 0) flow[3 * i] = flow[3 * i + 1] = flow[3 * i + 2] = NAN;
  }
}

// Flow of every point from the hidden layer of its cell.
// hidden: [cells / block][cells / block][block][block][num_hidden]. offset_weight: [num_hidden][3]. weight: [3]
// [num_hidden]. bias: [3]. leak: slope of leaky_relu below 0; NaN for GELU. flow: [num_points][3], NaN without a cell.
KERNEL flow_points(const float* cloud, int cells, float z_centre, const float* centres, const int* cell_index,
                   int block, int num_hidden, const float* hidden, const float* offset_weight, const float* weight,
                   const float* bias, float leak, float* flow) {
  const bool has_gelu = leak != leak;
  FOR_EACH(i, num_points(cloud)) {
    const int cell = cell_index[i];
    float* out = flow + 3 * i;
    if (cell < 0) {
      out[0] = out[1] = out[2] = NAN;
      continue;
    }
    const Point p = moved(cloud, i);
    const int column = cell % cells, row = cell / cells;
    const float x = p.x - centres[column], y = p.y - centres[row], z = p.z - z_centre;
    const long long place =
        ((long long)(row / block) * (cells / block) + column / block) * block * block + row % block * block +
        column % block;
    const float* layer = hidden + place * num_hidden;
    float vx = bias[0], vy = bias[1], vz = bias[2];
    for (int h = 0; h < num_hidden; ++h) {
      const float* w = offset_weight + 3 * h;
      float value = layer[h] + (w[0] * x + w[1] * y + w[2] * z);
      if (has_gelu)
        value *= 0.5f * (1.0f + erff(value * 0.70710678f));
      else if (value < 0)
        value *= leak;
      vx += value * weight[h];
      vy += value * weight[num_hidden + h];
      vz += value * weight[2 * num_hidden + h];
    }
    out[0] = vx;
    out[1] = vy;
    out[2] = vz;
  }
}
