module example.com/finetune

go 1.21
