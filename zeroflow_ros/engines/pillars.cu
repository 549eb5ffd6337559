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
#define ADD(place, value) atomicAdd(place, value)
#else
#include <cmath>
#define KERNEL extern "C" void
#define FOR_EACH(i, num) for (int i = 0; i < (num); ++i)
#define ADD(place, value) (*(place) += (value))
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

INLINE int num_points(const float* cloud) { return *reinterpret_cast<const int*>(cloud); }

// Point i in the frame of the grid; the order of the additions is that of the CPU.
INLINE Point moved(const float* cloud, int i) {
  const float* m = cloud + 4;
  const float* p = cloud + WORDS + 3 * i;
  return {p[0] * m[0] + p[1] * m[1] + p[2] * m[2] + m[3],
          p[0] * m[4] + p[1] * m[5] + p[2] * m[6] + m[7],
          p[0] * m[8] + p[1] * m[9] + p[2] * m[10] + m[11]};
}

// Find the cell of every point and add up the points of each cell, as offsets from the centre of the cell: atomics add
// in any order, and sums of coordinates far from the vehicle would depend on it by up to 0.1 mm.
// centres: [cells], the centre of each column and of each row [m]. cell_index: [num_points], -1 outside. sums:
// [cells * cells][4], of x, y and z minus the centre, and of 1; all 0 before.
KERNEL assign_points(const float* cloud, int cells, float inv_cell, float z_min, float z_max, float z_centre,
                     const float* centres, int* cell_index, float* sums) {
  const float size = (float)cells, half = size * 0.5f;
  FOR_EACH(i, num_points(cloud)) {
    const Point p = moved(cloud, i);
    const float column = floorf(p.x * inv_cell + half), row = floorf(p.y * inv_cell + half);
    int cell = -1;
    // Written so that NaN is outside.
    if (column >= 0 && column < size && row >= 0 && row < size && p.z >= z_min && p.z < z_max) {
      cell = (int)row * cells + (int)column;
      ADD(&sums[4 * cell], p.x - centres[(int)column]);
      ADD(&sums[4 * cell + 1], p.y - centres[(int)row]);
      ADD(&sums[4 * cell + 2], p.z - z_centre);
      ADD(&sums[4 * cell + 3], 1.0f);
    }
    cell_index[i] = cell;
  }
}

// Average relu(Linear) over each pillar.
// centres: as above. weight: [num_channels][9], of xyz, xyz minus the mean of the pillar, xyz minus its centre. bias:
// [num_channels]. image: [num_channels][cells * cells], all 0 before.
KERNEL pool_pillars(const float* cloud, int cells, float z_centre, const float* centres, const int* cell_index,
                    const float* sums, int num_channels, const float* weight, const float* bias, float* image) {
  FOR_EACH(i, num_points(cloud)) {
    const int cell = cell_index[i];
    if (cell < 0) continue;
    const Point p = moved(cloud, i);
    const float* sum = sums + 4 * cell;
    const float inv_count = 1.0f / sum[3];
    const float cx = p.x - centres[cell % cells], cy = p.y - centres[cell / cells], cz = p.z - z_centre;
    const float mx = cx - sum[0] * inv_count, my = cy - sum[1] * inv_count, mz = cz - sum[2] * inv_count;
    for (int c = 0; c < num_channels; ++c) {
      const float* w = weight + 9 * c;
      const float value = w[0] * p.x + w[1] * p.y + w[2] * p.z + w[3] * mx + w[4] * my + w[5] * mz + w[6] * cx +
                          w[7] * cy + w[8] * cz + bias[c];
      if (value > 0) ADD(&image[(long long)c * cells * cells + cell], value * inv_count);
    }
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
