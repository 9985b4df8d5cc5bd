// What the kernels are given: one struct each, by value. runtime/_arguments.py has the same structs.
//
// Limits. A parameter block of 4 KB is what every driver takes. 40 columns are enough for a state,
// the inputs and outputs of 16 lanes and what extrapolation remembers, or for the state, inputs,
// outputs and step noises of 8 lanes; 16 rows for the drafts of 16 lanes. A longer sum can go through
// a float32 tensor without a change of bits: it continues as that tensor times 1.
#pragma once

typedef unsigned long long Address;

constexpr int MAX_COLUMNS = 40;  // a multiple of COLUMNS_AT_ONCE
constexpr int MAX_ROWS = 16;
constexpr int GRAM_ROWS = 4;
constexpr int STRANDS = 1024;  // partial sums of a picture; fixed, so that no grid changes the bits

enum Kind : unsigned char { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

// A message is what one peer copy takes to a lane: this header, then its drafts, float32.
constexpr int MESSAGE_HEADER_BYTES = 256;
constexpr int MESSAGE_TIMESTEPS = 32;         // float32, from byte 0 on, one for each draft
constexpr int MESSAGE_GUIDANCE_OFFSET = 248;  // float32
constexpr int MESSAGE_ROUND_OFFSET = 252;     // int32

// Rows that are linear forms of columns: row r = sum over c of coefficients[c][r] * column c.
struct Forms {
    Address columns[MAX_COLUMNS];
    Address conditional[MAX_COLUMNS];  // not 0: column c is guided, and columns[c] is its unconditional half
    Address per_picture;               // float32 (batch, rows, columns) in place of coefficients, or 0
    Address guidance_at;               // float32 in place of guidance, or 0
    long long elements;                // of one picture
    float coefficients[MAX_COLUMNS][MAX_ROWS];
    float guidance;
    int batch;
    int rows;
    int column_count;
    int aligned;                        // every tensor allows accesses of four elements
    unsigned short terms[MAX_COLUMNS];  // bit r: column c is a term of row r; 0 beyond column_count
    unsigned char kinds[MAX_COLUMNS];
};

struct LinearArguments {
    Forms forms;
    Address targets[MAX_ROWS];
    Address messages[MAX_ROWS];  // header that gets the row's timestep, guidance and the round, or 0
    float timesteps[MAX_ROWS];
    int round;
    unsigned char kinds[MAX_ROWS];
    unsigned char slots[MAX_ROWS];  // which of the header's timesteps
};

struct GramPartialArguments {
    Forms forms;       // at most GRAM_ROWS rows
    Address partials;  // float64 (batch, rows (rows + 1) / 2, STRANDS)
};

struct GramTotalArguments {
    Address partials;
    Address target;  // float64 (batch, rows, rows), on the device or in pinned memory
    int batch;
    int rows;
};

struct NonfiniteArguments {
    Address values;
    Address flags;  // int32 (batch)
    Address mark;   // int32 to set them to, or 0: set them to 1
    long long elements;
    int batch;
    int kind;
    int aligned;
};

struct ToPixelsArguments {
    Address decoded;  // (batch, 3, plane)
    Address pixels;   // uint8 (batch, plane, 3)
    long long plane;  // height * width
    int batch;
    int kind;
    int aligned;
};

// Latents of which a part is known, one row for each.
struct KeepArguments {
    Address targets[MAX_ROWS];  // float32 (elements), as all here
    Address latents;
    Address noise;
    Address repaint;     // 0 where the picture is known, 1 elsewhere
    long long elements;  // of all pictures together
    float a[MAX_ROWS];   // levels: the known part is a * latents + s * noise
    float s[MAX_ROWS];
    int rows;
    int aligned;
};

struct FillTimestepArguments {
    Address message;
    Address timesteps;  // float32 (branches, drafts, pictures)
    int branches;
    int drafts;
    int pictures;
};

static_assert(sizeof(LinearArguments) <= 4096 && sizeof(GramPartialArguments) <= 4096, "see the limits above");
