// The threads of a block, each on its own stack, switched where one has to wait for others. Blocks run one after another.
//
// Two schedules: greedy (seed 0) always runs the first thread that can run, so that a warp goes as far as it may before
// the next one starts. Otherwise warps take precedence in a random order that changes now and then, lanes and blocks come
// at random. Either may show a missing barrier that the other does not; a uniform choice would hold no warp back for long.
//
// A stack is taken when a thread starts and given back when it ends: a kernel that never waits needs one for all threads.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#include "emulator.h"
#include "switch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The linker's names for the section's ends; there is none in a program without shared variables.
extern "C" {
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 4096;  // below each stack, not accessible
constexpr int WARP = 32;
constexpr int MOST = 1024;
constexpr uint64_t UNDEFINED = ~uint64_t(0);  // a NaN in every floating type

enum State { NEW, READY, AT_BARRIER, IN_WARP, DONE };

struct Thread {
    Context context;
    int stack;
    uint3 index;
    State state;
    Place place;  // where it waits
    // at a barrier
    bool predicate;
    // in a warp's operation
    Operation operation;
    unsigned mask;
    uint64_t value, result;
    int operand, width;
};

Thread threads[MOST];
int count;  // threads of a block
int warps;  // of a block
// Lanes that have not returned, that wait for their warp, that can run.
unsigned alive[MOST / WARP], in_warp[MOST / WARP], ready[MOST / WARP];
int precedence[MOST / WARP];  // the warps, the first to run first
Thread* current;
Context scheduler;
uint64_t random_state;  // 0: greedy
char* stacks;
std::vector<int> free_stacks;
int arrived_at_barrier, finished, barrier_count;
std::string failure;
void (*kernel)(void**);
void** arguments;
char* shared_bytes;

uint64_t draw() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 2685821657736338717ull >> 33;
}

void thread_main() {
    arrived(current->context, scheduler);
    kernel(arguments);
    current->state = DONE;
    leave(current->context, scheduler);
}

void wait() {
    Thread* self = current;
    go(self->context, scheduler);
    // the scheduler has set `current` and threadIdx again
}

void fail_here(const std::string& what, Place place) {
    failure = what + " (" + place.file + ":" + std::to_string(place.line) + ")";
    wait();  // the scheduler stops at a failure: this thread never goes on
}

char* stack_of(int i) { return stacks + i * (STACK + GUARD) + GUARD; }

// --- a warp's operations ------------------------------------------------------------------------------

bool same(const Place& a, const Place& b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

bool matches(const Thread& a, const Thread& b) {
    return a.operation == b.operation && a.mask == b.mask && same(a.place, b.place);
}

// The lane that `lane` reads from; its own where that lies outside its segment of `width` lanes.
int source_lane(const Thread& t, int lane) {
    const int segment = lane & ~(t.width - 1), end = segment + t.width;
    int from = lane;
    if (t.operation == SHUFFLE) from = segment + (t.operand & (t.width - 1));
    if (t.operation == SHUFFLE_UP) from = lane - t.operand < segment ? lane : lane - t.operand;
    if (t.operation == SHUFFLE_DOWN) from = lane + t.operand >= end ? lane : lane + t.operand;
    if (t.operation == SHUFFLE_XOR) from = (lane ^ t.operand) >= end ? lane : lane ^ t.operand;
    return from;
}

// Let thread `t`'s warp go on if all lanes of its mask are there. Lanes that have returned are not waited for (as PTX
// has it for shfl.sync); what is read from them, or from lanes outside the mask, is undefined.
void complete(int t) {
    const Thread& self = threads[t];
    const int warp = t / WARP, first = warp * WARP;
    const unsigned there = self.mask & alive[warp];
    if (there & ~in_warp[warp]) return;
    for (int lane = 0; lane < WARP; ++lane)
        if (there >> lane & 1 && !matches(self, threads[first + lane])) return;
    uint64_t ballot = 0;
    for (int lane = 0; lane < WARP; ++lane)
        if (there >> lane & 1 && threads[first + lane].value) ballot |= uint64_t(1) << lane;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!(there >> lane & 1)) continue;
        Thread& other = threads[first + lane];
        const int from = source_lane(other, lane);
        if (other.operation == BALLOT) other.result = ballot;
        else other.result = there >> from & 1 ? threads[first + from].value : UNDEFINED;
    }
    for (int lane = 0; lane < WARP; ++lane) {
        if (!(there >> lane & 1)) continue;
        threads[first + lane].state = READY;
    }
    in_warp[warp] &= ~there;
    ready[warp] |= there;
}

// --- the scheduler ------------------------------------------------------------------------------------

void shuffle_warps() {
    for (int i = warps; i > 1; --i) std::swap(precedence[i - 1], precedence[draw() % i]);
}

// The next thread to run; -1 if none can.
int next_ready() {
    if (random_state && draw() % 64 == 0) shuffle_warps();
    for (int i = 0; i < warps; ++i) {
        const int warp = precedence[i];
        unsigned lanes = ready[warp];
        if (!lanes) continue;
        if (random_state)  // leave out a random number of them from the low end
            for (uint64_t skip = draw() % __builtin_popcount(lanes); skip > 0; --skip) lanes &= lanes - 1;
        const int lane = __builtin_ctz(lanes);
        ready[warp] &= ~(1u << lane);
        return warp * WARP + lane;
    }
    return -1;
}

void run(int t) {
    current = &threads[t];
    threadIdx = current->index;
    if (current->state == NEW) {
        current->stack = free_stacks.back();
        free_stacks.pop_back();
        prepare(current->context, stack_of(current->stack), STACK, thread_main);
    }
    current->state = READY;
    go(scheduler, current->context);
}

void release_barrier() {
    barrier_count = 0;
    for (int t = 0; t < count; ++t) barrier_count += threads[t].predicate;
    for (int t = 0; t < count; ++t) threads[t].state = READY;
    memcpy(ready, alive, sizeof ready);
    arrived_at_barrier = 0;
}

std::string describe(const Thread& t) {
    if (t.state == DONE) return "returned from the kernel";
    const std::string at = std::string(" at ") + t.place.file + ":" + std::to_string(t.place.line);
    if (t.state == AT_BARRIER) return "waits in __syncthreads" + at;
    char mask[32];
    snprintf(mask, sizeof mask, " with mask %#x", t.mask);
    const char* names[] = {"__syncwarp", "a vote", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    return std::string("waits in ") + names[t.operation] + at + mask;
}

// Who waits for what, neighbouring threads in the same state together.
std::string deadlock() {
    std::string text = "deadlock:";
    for (int t = 0, shown = 0; t < count && shown < 8; ++shown) {
        const std::string what = describe(threads[t]);
        int last = t;
        while (last + 1 < count && describe(threads[last + 1]) == what) ++last;
        text += shown ? "; thread " : " thread ";
        text += std::to_string(t) + (last > t ? " to " + std::to_string(last) : "") + " " + what;
        t = last + 1;
    }
    return text;
}

bool one_barrier() {
    for (int t = 1; t < count; ++t)
        if (!same(threads[0].place, threads[t].place)) return false;
    return true;
}

void run_block() {
    arrived_at_barrier = finished = 0;
    memset(alive, 0, sizeof alive);
    memset(in_warp, 0, sizeof in_warp);
    for (int t = 0; t < count; ++t) {
        alive[t / WARP] |= 1u << t % WARP;
        const unsigned x = t % blockDim.x, y = t / blockDim.x % blockDim.y, z = t / (blockDim.x * blockDim.y);
        threads[t].index = uint3{x, y, z};
        threads[t].state = NEW;
    }
    memcpy(ready, alive, sizeof ready);
    if (random_state) shuffle_warps();
    for (int t = next_ready(); t >= 0; t = next_ready()) {
        run(t);
        if (!failure.empty()) break;
        Thread& self = threads[t];
        if (self.state == IN_WARP) {
            in_warp[t / WARP] |= 1u << t % WARP;
            complete(t);
        }
        if (self.state == AT_BARRIER && ++arrived_at_barrier == count) {
            if (one_barrier()) release_barrier();
            else failure = deadlock();
        }
        if (self.state == DONE) {
            ++finished;
            free_stacks.push_back(self.stack);
            alive[t / WARP] &= ~(1u << t % WARP);
            for (int lane = 0; lane < WARP; ++lane)  // those who waited for this one alone
                if (in_warp[t / WARP] >> lane & 1) complete(t / WARP * WARP + lane);
        }
    }
    if (failure.empty() && finished < count) failure = deadlock();
}

// Not memset, which AddressSanitizer would stop at the gaps it leaves between variables.
__attribute__((no_sanitize("address"))) void overwrite(char* from, char* to) {
    for (volatile char* p = from; p < to; ++p) *p = static_cast<char>(0xff);
}

std::string triple(const uint3& i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

}  // namespace

int barrier(bool predicate, Place place) {
    current->state = AT_BARRIER;
    current->predicate = predicate;
    current->place = place;
    wait();
    return barrier_count;
}

uint64_t together(Operation operation, unsigned mask, uint64_t value, int operand, int width, Place place) {
    Thread* self = current;
    const int lane = static_cast<int>(self - threads) % WARP;
    if (!(mask >> lane & 1)) fail_here("a warp's operation by a lane that its mask leaves out", place);
    if (width < 1 || width > WARP || (width & (width - 1))) fail_here("a shuffle's width is no power of 2", place);
    self->state = IN_WARP;
    self->operation = operation;
    self->mask = mask;
    self->value = value;
    self->operand = operand;
    self->width = width;
    self->place = place;
    wait();
    return self->result;
}

void* dynamic_shared() { return shared_bytes; }

// Memory for the stacks of a block, which all programs of a process share: the guards below them cost the system a map
// each, and those are counted.
extern "C" __attribute__((visibility("default"))) void* emulator_stacks() {
    void* memory = mmap(nullptr, MOST * (STACK + GUARD), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    for (int i = 0; i < MOST; ++i) mprotect(static_cast<char*>(memory) + i * (STACK + GUARD), GUARD, PROT_NONE);
    return memory;
}

// Runs a whole grid. 0, or 1 with what went wrong in `error`.
extern "C" __attribute__((visibility("default"))) int emulator_launch(void (*call)(void**), void** args,
                                                                      const unsigned* grid, const unsigned* block,
                                                                      size_t shared, uint64_t seed, void* memory,
                                                                      char* error, size_t capacity) {
    stacks = static_cast<char*>(memory);
    free_stacks.clear();
    for (int i = MOST; i-- > 0;) free_stacks.push_back(i);
    kernel = call;
    arguments = args;
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    count = static_cast<int>(block[0] * block[1] * block[2]);
    warps = (count + WARP - 1) / WARP;
    for (int i = 0; i < warps; ++i) precedence[i] = i;
    random_state = seed;
    failure.clear();
    // exactly as long as asked for: AddressSanitizer sees what is beyond
    shared_bytes = static_cast<char*>(malloc(shared ? shared : 1));
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    std::vector<uint64_t> order(blocks);
    for (uint64_t b = 0; b < blocks; ++b) order[b] = b;
    for (uint64_t b = blocks; random_state && b > 1; --b) std::swap(order[b - 1], order[draw() % b]);
    for (uint64_t b = 0; b < blocks && failure.empty(); ++b) {
        const uint64_t i = order[b];
        blockIdx = uint3{static_cast<unsigned>(i % grid[0]), static_cast<unsigned>(i / grid[0] % grid[1]),
                         static_cast<unsigned>(i / grid[0] / grid[1])};
        overwrite(shared_bytes, shared_bytes + shared);
        overwrite(__start_cuda_shared, __stop_cuda_shared);
        run_block();
    }
    free(shared_bytes);
    if (failure.empty()) return 0;
    forget(stacks, MOST * (STACK + GUARD));  // of threads that will never end
    const std::string text = "block " + triple(blockIdx) + ", thread " + triple(threadIdx) + ": " + failure;
    snprintf(error, capacity, "%s", text.c_str());
    return 1;
}

}  // namespace emulator
