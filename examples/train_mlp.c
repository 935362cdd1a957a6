/* train_mlp.c: trains the network of a network file with libheddle and looks at one answer.
 *
 *   cc train_mlp.c -o train_mlp $(pkg-config --cflags --libs heddle) && ./train_mlp mlp.json */
#include <heddle/heddle.h>
#include <stdio.h>

static int train(hd_net *net, int steps, hd_error *err)
{
    for (int step = 1; step <= steps; step++) {
        double loss;
        int rc = hd_net_next_batch(net, err);
        if (!rc) rc = hd_net_step(net, &loss, err);
        if (rc) return rc;
        if (step % 100 == 0) printf("step %4d  loss %.4f\n", step, loss);
    }
    return 0;
}

static int look(hd_net *net, hd_error *err)
{
    float scores[64][10];
    int best = 0;
    int rc = hd_net_next_batch(net, err);
    if (!rc) rc = hd_net_run(net, err);
    if (!rc) rc = hd_net_output(net, "logits", scores[0], 640, err);
    for (int i = 1; i < 10; i++)
        if (scores[0][i] > scores[0][best]) best = i;
    if (!rc) printf("the first picture of the next batch shows a %d\n", best);
    return rc;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    double loss, accuracy;
    const int steps = 600;
    hd_net *net = hd_net_open(argc > 1 ? argv[1] : "mlp.json", "{\"batch\": 64, \"steps\": 600}", &err);
    int rc = net ? train(net, steps, &err) : err.code;
    if (!rc) rc = hd_net_evaluate(net, &loss, &accuracy, &err);
    if (!rc) printf("held out: loss %.4f, accuracy %.4f\n", loss, accuracy);
    if (!rc) rc = look(net, &err);
    if (rc) fprintf(stderr, "%s\n", err.message);
    hd_net_close(net);
    return rc ? 1 : 0;
}
