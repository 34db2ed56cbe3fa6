"""Trains tests/data/digits.safetensors, a small CNN + LSTM for 8x8 digits.

Data: scikit-learn's bundled digits (1797 images of 8x8 pixels with values 0..16;
from the UCI set "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, CC BY 4.0). 200 of them, drawn by a fixed seed, are the test set and are
stored in digits_test.safetensors; the model is trained on the other 1597.

    target/venv/bin/pip install scikit-learn   # for training only
    target/venv/bin/python tests/data/train_digits.py

The network: conv1 and conv2 with batch norm and ReLU, a 2x2 max pool, an LSTM over
the four rows that are left, a linear layer on its last output. The measured numbers
and the date are in README.md beside this file.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = pathlib.Path(__file__).parent
STEPS, BATCH, TEST = 1000, 64, 200


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.lstm = nn.LSTM(4 * 32, 48, batch_first=True)
        self.fc = nn.Linear(48, 10)

    def forward(self, images):  # (batch, 8, 8), values 0..16
        x = F.relu(self.bn1(self.conv1(images[:, None] / 16)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # (batch, 32, 4, 4)
        rows = x.permute(0, 2, 1, 3).flatten(2)  # 4 steps of 32 channels x 4 columns
        return self.fc(self.lstm(rows)[0][:, -1])


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main():
    from sklearn.datasets import load_digits  # here, so that tests can import Digits

    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels))
    test, train = order[:TEST], order[TEST:]
    model = Digits()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for _ in range(STEPS):
        at = train[torch.randint(len(train), (BATCH,))]
        loss = F.cross_entropy(model(images[at]), labels[at])
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
    print(f"train accuracy {accuracy(model, images[train], labels[train]):.4f}")
    print(f"test accuracy {accuracy(model, images[test], labels[test]):.4f}")
    save_file(model.state_dict(), HERE / "digits.safetensors")
    test_set = {"images": images[test].to(torch.uint8), "labels": labels[test]}
    save_file(test_set, HERE / "digits_test.safetensors")
    for name in ("digits.safetensors", "digits_test.safetensors"):
        (HERE / name).chmod(0o644)


if __name__ == "__main__":
    main()
