// llamacpp drives the libraries of llama.cpp from standard input, one command a line:
//
//   threads N       use N threads
//   prefill N       seconds to compute N tokens, logits of the last one
//   score N         seconds to compute N tokens, logits of all
//   decode N        seconds to compute N tokens one by one
//   logits ID...    a line "TOKENS VOCAB", then that many float32
//   tokens LENGTH   LENGTH bytes of text follow; the line of their token ids
//
// Usage: llamacpp LIBRARIES MODEL. It writes "ready SECONDS" when the model is loaded.
//
// The package that ships the libraries has no headers. Declared here is what is used; parameters that are passed by
// value are taken as blocks larger than any of their versions, which the calling convention of amd64 permits.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct params {
	uint32_t word[256];
};

struct batch {
	int32_t n_tokens;
	int32_t *token;
	float *embd;
	int32_t *pos;
	int32_t *n_seq_id;
	int32_t **seq_id;
	int8_t *logits;
};

void ggml_backend_load_all_from_path(const char *);
void llama_backend_init(void);
void llama_log_set(void (*)(int, const char *, void *), void *);
struct params llama_model_default_params(void);
struct params llama_context_default_params(void);
void *llama_model_load_from_file(const char *, struct params);
void *llama_init_from_model(void *, struct params);
void llama_set_n_threads(void *, int32_t, int32_t);
struct batch llama_batch_init(int32_t, int32_t, int32_t);
int llama_decode(void *, struct batch);
float *llama_get_logits_ith(void *, int32_t);
void *llama_get_memory(void *);
void llama_memory_clear(void *, bool);
const void *llama_model_get_vocab(const void *);
int32_t llama_vocab_n_tokens(const void *);
int32_t llama_tokenize(const void *, const char *, int32_t, int32_t *, int32_t, bool, bool);

enum { MAX_TOKENS = 1024 };

static void *context;
static struct batch input;

static void report(int level, const char *text, void *unused)
{
	(void)unused;
	if (level == 4 || getenv("VERBOSE"))
		fputs(text, stderr);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
	fprintf(stderr, "llamacpp: %s\n", what);
	exit(1);
}

static void add(int32_t token, int position, bool logits)
{
	int i = input.n_tokens++;
	input.token[i] = token;
	input.pos[i] = position;
	input.n_seq_id[i] = 1;
	input.seq_id[i][0] = 0;
	input.logits[i] = logits;
}

static void compute(void)
{
	if (llama_decode(context, input) != 0)
		die("llama_decode failed");
	llama_get_logits_ith(context, -1); // waits for the result
}

static void reset(void)
{
	llama_memory_clear(llama_get_memory(context), true);
	input.n_tokens = 0;
}

static void prompt(int n, bool all)
{
	reset();
	for (int i = 0; i < n; i++)
		add(i * 7 + 3, i, all || i == n - 1);
	double start = now();
	compute();
	printf("%.6f\n", now() - start);
}

static void decode(int n)
{
	reset();
	for (int i = 0; i < 3; i++)
		add(i + 1, i, i == 2);
	compute();
	double start = now();
	for (int i = 0; i < n; i++) {
		input.n_tokens = 0;
		add(i * 7 + 3, 3 + i, true);
		compute();
	}
	printf("%.6f\n", now() - start);
}

static void logits(char *ids, int vocab)
{
	reset();
	for (char *id = strtok(ids, " \n"); id; id = strtok(NULL, " \n"))
		add(atoi(id), input.n_tokens, true);
	compute();
	printf("%d %d\n", input.n_tokens, vocab);
	for (int i = 0; i < input.n_tokens; i++)
		fwrite(llama_get_logits_ith(context, i), sizeof(float), vocab, stdout);
}

static void tokens(int length, const void *vocab)
{
	char *text = malloc(length + 1);
	int32_t *ids = malloc((length + 16) * sizeof *ids);
	if (fread(text, 1, length, stdin) != (size_t)length)
		die("the text ended early");
	int n = llama_tokenize(vocab, text, length, ids, length + 16, false, false);
	if (n < 0)
		die("llama_tokenize failed");
	for (int i = 0; i < n; i++)
		printf(i ? " %d" : "%d", ids[i]);
	puts("");
	free(text);
	free(ids);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		die("usage: llamacpp LIBRARIES MODEL");
	llama_log_set(report, NULL);
	double start = now();
	ggml_backend_load_all_from_path(argv[1]);
	llama_backend_init();
	void *model = llama_model_load_from_file(argv[2], llama_model_default_params());
	if (!model)
		die("the model does not load");
	struct params p = llama_context_default_params();
	p.word[0] = 2 * MAX_TOKENS; // n_ctx
	p.word[1] = MAX_TOKENS;     // n_batch
	p.word[2] = MAX_TOKENS / 2; // n_ubatch
	p.word[3] = 1;              // n_seq_max
	context = llama_init_from_model(model, p);
	if (!context)
		die("no context");
	input = llama_batch_init(MAX_TOKENS, 0, 1);
	const void *vocab = llama_model_get_vocab(model);
	printf("ready %.6f\n", now() - start);
	fflush(stdout);

	static char line[16 * MAX_TOKENS];
	while (fgets(line, sizeof line, stdin)) {
		char *rest = strchr(line, ' ');
		if (!rest)
			die("a command has an argument");
		*rest++ = 0;
		int n = atoi(rest);
		if (!strcmp(line, "threads")) {
			llama_set_n_threads(context, n, n);
			puts("ok");
		} else if (!strcmp(line, "prefill"))
			prompt(n, false);
		else if (!strcmp(line, "score"))
			prompt(n, true);
		else if (!strcmp(line, "decode"))
			decode(n);
		else if (!strcmp(line, "logits"))
			logits(rest, llama_vocab_n_tokens(vocab));
		else if (!strcmp(line, "tokens"))
			tokens(n, vocab);
		else
			die("unknown command");
		fflush(stdout);
	}
	return 0;
}
