extern "C" __device__ const unsigned stack__shared = 128;
extern "C" __global__ void stack(float *x, int n) {
    float t[16];
    for (int i = 0; i < 16; i++) t[i] = x[i];
    for (int i = 0; i < n; i++) x[i] = t[i % 16];
}
